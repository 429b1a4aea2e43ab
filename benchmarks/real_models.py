"""Networks of the size of Stable Diffusion 1.5 and DiT-XL/2, random weights: ours against torch.

    pip install -e ".[parity]"
    python -m benchmarks.real_models                        # CPU: by turns, in one process
    python -m benchmarks.real_models --networks=sd15 --batch=1,2 --side=32
    python -m benchmarks.real_models --memory               # peak memory, a process each
    python -m benchmarks.real_models --device               # images/s on one GPU, in 8 minutes

torch runs diffusers' network with channels last, as it is and compiled; the ratio is of the minima
(of the medians) to the better of the two, below 1 ours is faster. `--device` draws whole pictures
with whole pipelines, bfloat16, ours and (where torch is there) diffusers'; `--toy` is the same with
tiny networks, to try it. What has no torch beside it is measured alone.
"""

import argparse
import functools
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import alternate, ratio
from ddim_jax import checkpoints, parallel
from ddim_jax.checkpoints import pipelines
from ddim_jax.checkpoints.parts import networks
from ddim_jax.model import Model

NETWORKS = ("sd15", "decoder", "dit-xl-2")
DTYPES = ("float32", "bfloat16")


# --- ours -----------------------------------------------------------------------------------------


def filled(shapes: Any, dtype: str) -> Any:
    """Random parameters of these shapes, of the size that keeps features alive."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        fan = max(1, np.prod(leaf.shape[:-1]))
        numbers = rng.standard_normal(leaf.shape, np.float32) * np.float32(fan**-0.5)
        return numbers.astype(jnp.dtype(dtype))

    return jax.tree.map(fill, shapes)


def our_step(name: str, batch: int, side: int, dtype: str) -> Callable[[], Any]:
    """One evaluation of our network, as a sampler does it."""
    if name == "decoder":
        net = networks(pipelines.shapes("sd15").config).codec
        params = jax.device_put(filled(pipelines.shapes("sd15").codec_params, dtype))
        z = np.ones((batch, side, side, 4), np.float32)
        program = jax.jit(lambda params, z: net.apply({"params": params}, z, method="decode"))
        return functools.partial(program, params, z)
    model = checkpoints.load(f"shapes:{name}", dtype=dtype).sized((8 * side, 8 * side))
    params = filled(model.params, dtype)
    params = model.prepared(params) if jax.default_backend() == "cpu" else params
    x = np.ones((batch, *model.sample_shape), np.float32)
    inputs = {
        key: np.ones((batch, *put.shape), put.dtype) for key, put in model.inputs.declared.items()
    }
    program = jax.jit(model.apply)
    return functools.partial(
        program, jax.device_put(params), x, np.full(batch, 500, np.float32), inputs
    )


# --- theirs ---------------------------------------------------------------------------------------


def their_step(name: str, batch: int, side: int, dtype: str, compiled: bool) -> Callable[[], Any]:
    """The same of diffusers' network, channels last."""
    import diffusers
    import torch

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    if name == "sd15":
        net = diffusers.UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    elif name == "decoder":
        net = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ).decoder  # fmt: skip
    else:
        net = diffusers.DiTTransformer2DModel(sample_size=side, out_channels=8)
    net = net.eval().to(kind).to(memory_format=torch.channels_last)
    x = torch.ones(batch, 4, side, side, dtype=kind).to(memory_format=torch.channels_last)
    t = torch.full((batch,), 500)
    told = {
        "sd15": (x, t, torch.ones(batch, 77, 768, dtype=kind)),
        "decoder": (x,),
        "dit-xl-2": (x, t),
    }[name]
    more = {"class_labels": torch.ones(batch, dtype=torch.long)} if name == "dit-xl-2" else {}
    call = torch.compile(net, dynamic=False) if compiled else net

    @torch.inference_mode()
    def step():
        call(*told, **more)

    return step


def has_torch() -> bool:
    """Whether torch and diffusers are there."""
    try:
        import diffusers  # noqa: F401
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


# --- comparisons ----------------------------------------------------------------------------------


def compare(args: argparse.Namespace) -> None:
    """Times of one evaluation, by turns."""
    print(f"{'network':10}{'dtype':>9}{'batch':>6}{'latents':>9}{'ours':>8}  torch, ms", flush=True)
    for name in args.networks:
        for dtype in args.dtypes:
            for batch in args.batch:
                given = (name, batch, args.side, dtype)
                calls = {"ours": our_step(*given)}
                if has_torch():
                    calls["eager"] = their_step(*given, compiled=False)
                    calls |= {"compiled": their_step(*given, compiled=True)} if args.compile else {}
                taken = alternate(calls, args.repeats)
                columns = " ".join(f"{kind} {1e3 * taken[kind].min():,.0f}" for kind in taken)
                theirs = [kind for kind in taken if kind != "ours"]
                best = min(theirs, key=lambda kind: taken[kind].min(), default="ours")
                print(
                    f"{name:10}{dtype:>9}{batch:6}{args.side:6}^2  {columns}   ratio "
                    f"{ratio(taken['ours'], taken[best])}",
                    flush=True,
                )


def memory(args: argparse.Namespace) -> None:
    """Peak memory of a process that evaluates one network twice."""
    for name in args.networks:
        for dtype in args.dtypes:
            peaks = {}
            for side in ("ours", "theirs") if has_torch() else ("ours",):
                command = [sys.executable, "-m", "benchmarks.real_models", "--alone", side]
                command += ["--networks", name, "--dtypes", dtype, "--side", str(args.side)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                peaks[side] = float(done.stdout.split()[-1])
            print(name, dtype, {side: f"{peak:.2f} GB" for side, peak in peaks.items()}, flush=True)


def alone(args: argparse.Namespace) -> None:
    """One network in this process: prints its peak of memory in GB."""
    given = (args.networks[0], args.batch[0], args.side, args.dtypes[0])
    if args.alone == "ours":
        step = our_step(*given)
    else:
        step = their_step(*given, compiled=False)
    for _ in range(2):
        jax.block_until_ready(step())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


# --- one GPU --------------------------------------------------------------------------------------

DRAWINGS = {
    "sd15": [(4, 4), (4, 8), (4, 20)],
    "sdxl": [(4, 4)],
    "dit-xl-2": [(32, 20)],
}
"""Batch and steps of each pipeline."""
PIPELINES = {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


def device(args: argparse.Namespace) -> None:
    """Images a second of whole pipelines, texts given as features; one line each."""
    print(f"{jax.devices()[0].device_kind}, bfloat16, guided, seconds of the best of 3", flush=True)
    for name, drawings in DRAWINGS.items():
        model = whole_model(name, args.toy)
        pipe = None if not has_torch() else their_pipeline(name, args.toy)
        for batch, steps in drawings:
            batch = 2 if args.toy else batch
            calls = {"ours": functools.partial(draw, model, batch, steps)}
            if pipe is not None:
                calls["diffusers"] = functools.partial(pipe, batch, steps)
            start = time.perf_counter()
            taken = alternate(calls, 3)
            rates = " ".join(f"{kind} {batch / taken[kind].min():.2f}" for kind in taken)
            beside = f"ratio {ratio(taken['ours'], taken['diffusers'])}" if pipe else ""
            height, width, _ = model.codec.picture_shape
            print(
                f"{name:9} {height} x {width} batch {batch:2} {steps:2} steps: images/s {rates} "
                f"{beside} ({time.perf_counter() - start:.0f} s with compiling)",
                flush=True,
            )
        del model, pipe


def whole_model(name: str, toy: bool) -> Model:
    """A pipeline with random weights, bfloat16; its texts are given as features."""
    model = checkpoints.load(f"shapes:{name}", dtype="bfloat16")
    if toy:
        model = toy_model(name)
    codec = filled(model.codec.params, "float32")
    return model.replace(params=filled(model.params, "bfloat16"), codec=model.codec.given(codec))


def toy_model(name: str) -> Model:
    """The same pipeline with tiny networks of tiny pictures."""
    config = pipelines.shapes(name).config.copy_and_resolve_references()
    small = dict(width=24, depth=2, heads=2)
    if name != "dit-xl-2":
        levels = len(config.model.get("widths", (1, 1, 1, 1)))
        small = dict(widths=(32,) * levels, heads=(2,) * levels, num_blocks=1)
        small |= {"depths": tuple(min(1, n) for n in config.model.get("depths", (1, 1, 1, 0)))}
    with config.unlocked():
        config.model.update(small)
        config.codec.update(widths=(32, 32, 32, 32), num_blocks=1)
        config.data.image_shape = (64, 64, 3)
        if name == "dit-xl-2":
            config.model.position_grid = 4
    return checkpoints.of_pipeline(checkpoints.parts.shapes_of(config), name)


def draw(model: Model, batch: int, steps: int) -> np.ndarray:
    """Pictures, guided, of features of texts that are given."""
    told = {"label": [1]}
    if model.inputs.takes("text"):
        declared = {key: model.inputs.declared.get(key) for key in ("text", "vector")}
        ones = {key: np.ones((1, *put.shape), np.float32) for key, put in declared.items() if put}
        told = {"prompt": ones | {"null": {key: 0 * value for key, value in ones.items()}}}
    recipe = model.recipe.replace(solver="ddim", solver_options={}, steps=steps, guidance_scale=5.0)
    return model.generate(batch, recipe, batch_size=batch, **told).pictures


def their_pipeline(name: str, toy: bool) -> Callable[[int, int], Any]:
    """`(batch, steps) -> pictures` of diffusers, bfloat16, channels last, compiled on a GPU."""
    import diffusers
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"
    nets = their_networks(name, toy)
    for part in nets.values():
        part.to(place, torch.bfloat16 if part is not nets["vae"] else torch.float32)
        part.to(memory_format=torch.channels_last)
    network = nets.get("unet", nets.get("transformer"))
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    call = torch.compile(network, dynamic=False) if place == "cuda" else network
    side = network.config.sample_size

    @torch.inference_mode()
    def run(batch, steps):
        scheduler.set_timesteps(steps)
        options = dict(device=place, dtype=torch.bfloat16)
        x, told = torch.randn(batch, 4, side, side, **options), {}
        if name != "dit-xl-2":
            width = network.config.cross_attention_dim
            told["encoder_hidden_states"] = torch.ones(2 * batch, 77, width, **options)
        else:
            told["class_labels"] = torch.ones(2 * batch, dtype=torch.long, device=place)
        if name == "sdxl":
            pooled = network.config.projection_class_embeddings_input_dim - 6 * 256
            added = dict(text_embeds=torch.ones(2 * batch, pooled, **options))
            told["added_cond_kwargs"] = added | {"time_ids": torch.ones(2 * batch, 6, **options)}
        for t in scheduler.timesteps:
            both = torch.cat([x, x]).to(memory_format=torch.channels_last)
            F = call(both, t.expand(2 * batch).to(place), **told).sample[:, :4]
            own, null = F.chunk(2)
            x = scheduler.step(null + 5 * (own - null), t, x).prev_sample
        rows = [nets["vae"].decode(z[None].float() / 0.18215).sample for z in x]
        return torch.cat(rows).cpu().numpy()

    return run


def their_networks(name: str, toy: bool) -> dict[str, Any]:
    """Network and autoencoder of diffusers."""
    import diffusers

    widths = (32, 32, 32, 32) if toy else (128, 256, 512, 512)
    vae = diffusers.AutoencoderKL(
        block_out_channels=widths, layers_per_block=1 if toy else 2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    if name == "dit-xl-2":
        small = dict(num_attention_heads=2, attention_head_dim=12, num_layers=2) if toy else {}
        side = 8 if toy else 32
        net = diffusers.DiTTransformer2DModel(sample_size=side, out_channels=8, **small)
        return {"transformer": net.eval(), "vae": vae.eval()}
    small = dict(block_out_channels=(32,) * 4, layers_per_block=1, attention_head_dim=2)
    options = dict(cross_attention_dim=768, sample_size=8 if toy else 64)
    if name == "sdxl":
        small |= dict(block_out_channels=(32,) * 3)
        options = dict(
            block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
            sample_size=8 if toy else 128, attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=1 if toy else (1, 2, 10), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    net = diffusers.UNet2DConditionModel(**options | (small if toy else {}))
    return {"unet": net.eval(), "vae": vae.eval()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--networks", type=names, default=list(NETWORKS))
    parser.add_argument("--dtypes", type=names, default=list(DTYPES))
    parser.add_argument("--batch", type=lambda text: [int(n) for n in text.split(",")], default=[1])
    parser.add_argument("--side", type=int, default=64, help="of the latents; DiT's is 32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--memory", action="store_true", help="peaks of processes of their own")
    parser.add_argument("--alone", choices=("ours", "theirs"), help="of such a process")
    parser.add_argument("--device", action="store_true", help="whole pipelines on one GPU")
    parser.add_argument("--toy", action="store_true", help="tiny networks, to try --device")
    args = parser.parse_args()
    modes = {"device": device, "alone": alone, "memory": memory}
    next((run for name, run in modes.items() if getattr(args, name)), compare)(args)


if __name__ == "__main__":
    parallel.use_compilation_cache()
    main()
