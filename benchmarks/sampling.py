"""Sampling on this machine: our copy of a diffusers network against diffusers on torch.

    pip install -e ".[parity]"
    python -m benchmarks.sampling [--networks=digits,cifar10] [--batch=1,4,16,64] [--steps=10]

A `UNet2DModel` with random weights is saved by diffusers and read by `checkpoints.load`; the
outputs of both are compared first. Then DDIM, by turns: ours as sample.py draws, theirs as
`DDIMPipeline` does, in the three ways torch runs it: as it is, with channels last, compiled with
channels last. The ratio is of the minima (of the medians) to the best of theirs; below 1, ours is
faster.
"""

import argparse
import copy
import functools
import tempfile
from pathlib import Path

import diffusers
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.common import alternate, ratio
from ddim_jax import checkpoints, parallel
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe

COMMON = dict(
    layers_per_block=2, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
    norm_eps=1e-6, attention_head_dim=None,
)  # fmt: skip
NETWORKS = {
    "digits": dict(
        sample_size=28, in_channels=1, out_channels=1, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ),
    "cifar10": dict(
        sample_size=32, block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ),
}  # fmt: skip


def copies(name: str) -> tuple[diffusers.UNet2DModel, Model]:
    """A network of diffusers and ours with its weights.

    Raises:
        AssertionError: their outputs differ by more than 1e-4 of the largest.
    """
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**COMMON, **NETWORKS[name]).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved"
        diffusers.DDIMPipeline(net, diffusers.DDIMScheduler()).save_pretrained(path)
        model = checkpoints.load(path)
    x = np.random.default_rng(0).normal(size=(2, *model.sample_shape)).astype(np.float32)
    t = np.array([3.0, 700.0], np.float32)
    ours = np.asarray(model.apply(model.params, jnp.asarray(x), jnp.asarray(t), {}))
    with torch.inference_mode():
        theirs = net(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t)).sample
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert difference < 1e-4, difference
    count = sum(p.numel() for p in net.parameters()) / 1e6
    print(f"{name}: {count:.1f}M parameters, outputs differ by {difference:.0e} of the largest")
    return net, model


def our_loop(model: Model, steps: int):
    """DDIM as sample.py draws."""
    generator = model.generator()
    table = Recipe("ddim", "uniform", steps).table(model.schedule)

    def draw(batch):
        (drawn,) = generator.batches(table, np.arange(batch), batch_size=batch)
        return drawn.result.x

    return draw


def torch_loop(net, image_shape: tuple[int, ...], steps: int, layout: torch.memory_format):
    """DDIM with a network on torch."""
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(steps)
    height, width, channels = image_shape

    @torch.inference_mode()
    def draw(batch):
        x = torch.randn(batch, channels, height, width).to(memory_format=layout)
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x, eta=0.0).prev_sample
        return x

    return draw


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="digits,cifar10")
    parser.add_argument("--batch", default="1,4,16,64")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"{'network':9}{'batch':>6}{'ours':>9}{'as it is':>10}{'last':>9}{'compiled':>10}  ratio")
    for name in args.networks.split(","):
        net, model = copies(name)
        swapped = copy.deepcopy(net).to(memory_format=torch.channels_last)
        image_shape = model.sample_shape
        loops = {
            "ours": our_loop(model, args.steps),
            "plain": torch_loop(net, image_shape, args.steps, torch.contiguous_format),
            "last": torch_loop(swapped, image_shape, args.steps, torch.channels_last),
            "compiled": torch_loop(
                torch.compile(swapped, dynamic=False), image_shape, args.steps, torch.channels_last
            ),
        }
        for batch in map(int, args.batch.split(",")):
            calls = {kind: functools.partial(call, batch) for kind, call in loops.items()}
            taken = alternate(calls, args.repeats)
            best = min(("plain", "last", "compiled"), key=lambda kind: taken[kind].min())
            columns = "".join(f"{1e3 * taken[kind].min():9.0f} " for kind in taken)
            print(f"{name:9}{batch:6}{columns} {ratio(taken['ours'], taken[best])}", flush=True)


if __name__ == "__main__":
    parallel.use_cpu_cores()
    main()
