"""A train step on this machine: ours against the same network and optimizer on torch.

    pip install -e ".[parity]"
    python -m benchmarks.training [--networks=digits:64,cifar10:8] [--repeats=5]

NAME:BATCH is a file in configs/ and a batch size. The torch side is a diffusers `UNet2DModel` of
the same widths, blocks and number of parameters, in the three ways torch runs it: as it is, with
channels last, and compiled with channels last. A step of both has the noising, the loss, its
gradient, clipping, Adam and the moving average. The ratio is of the minima (of the medians) to the
best of theirs; below 1, ours is faster.
"""

import argparse
import copy

import diffusers
import ml_collections
import torch

from benchmarks import torch_networks
from benchmarks.common import alternate, load_config, our_training, ratio
from ddim_jax import parallel
from ddim_jax.networks.layers import group_count


def their_network(config: ml_collections.ConfigDict) -> diffusers.UNet2DModel:
    """A network of diffusers of the same shape; it sees patches as channels."""
    net, patch = config.model, config.model.get("patch_size", 1)
    size, _, channels = config.data.image_shape
    sizes = [size // patch // 2**level for level in range(len(net.channel_mults))]
    with_attention = [size in net.attention_resolutions for size in sizes]
    names = ["AttnDownBlock2D" if found else "DownBlock2D" for found in with_attention]
    classes = net.get("num_classes", 0)
    return diffusers.UNet2DModel(
        sample_size=sizes[0],
        in_channels=channels * patch**2,
        out_channels=channels * patch**2,
        block_out_channels=[int(net.channels * mult) for mult in net.channel_mults],
        layers_per_block=net.num_blocks,
        down_block_types=names,
        up_block_types=[name.replace("Down", "Up") for name in reversed(names)],
        attention_head_dim=None,
        norm_num_groups=group_count(net.channels),
        dropout=net.get("dropout", 0.0),
        num_class_embeds=classes + 1 if classes else None,
    )


def theirs(net: diffusers.UNet2DModel, call, batch: int, layout: torch.memory_format):
    """A call that takes a step."""
    net.train()
    average = [p.detach().clone() for p in net.parameters()]
    adam = torch.optim.Adam(net.parameters(), lr=1e-4)
    scheduler = diffusers.DDPMScheduler()
    size, channels = net.config.sample_size, net.config.in_channels
    images = torch.zeros(batch, channels, size, size, dtype=torch.uint8).to(memory_format=layout)
    given = {"class_labels": torch.zeros(batch, dtype=torch.int64)} if net.class_embedding else {}

    def take():
        x = images.float() / 127.5 - 1
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (batch,))
        loss = (call(scheduler.add_noise(x, noise, t), t, **given).sample - noise).square().mean()
        torch_networks.update(net, adam, average, loss)
        return loss.item()

    return take


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="digits:64,cifar10:8")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    heads = ("ours", "as it is", "last", "compiled")
    print(
        f"{'network':9}{'batch':>6}" + "".join(f"{head + ' ms':>12}" for head in heads) + "  ratio"
    )
    for name, _, batch in (part.partition(":") for part in args.networks.split(",")):
        config, batch = load_config(f"configs/{name}.py"), int(batch)
        count, take = our_training(config, batch)
        plain = their_network(config)
        their_count = sum(p.numel() for p in plain.parameters())
        last, last_compiled = (
            copy.deepcopy(plain).to(memory_format=torch.channels_last) for _ in range(2)
        )
        calls = {
            "ours": take,
            "plain": theirs(plain, plain, batch, torch.contiguous_format),
            "last": theirs(last, last, batch, torch.channels_last),
            "compiled": theirs(
                last_compiled, torch.compile(last_compiled), batch, torch.channels_last
            ),
        }
        taken = alternate(calls, args.repeats)
        best = min((kind for kind in calls if kind != "ours"), key=lambda kind: taken[kind].min())
        times = "".join(f"{1e3 * taken[kind].min():12.0f}" for kind in calls)
        print(f"{name:9}{batch:6}{times}  {ratio(taken['ours'], taken[best])}", flush=True)
        print(f"  parameters: {count:,} and {their_count:,}")


if __name__ == "__main__":
    parallel.use_cpu_cores()
    main()
