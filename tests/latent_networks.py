"""Tiny latent networks in every configuration, with weights that their tensors' names give.

Each case has our network, its names, and how torch's twin is made and run. `golden.npz` holds what
torch gave; `python -m tests.latent_networks` records it, where torch, diffusers and transformers
are installed.
"""

import dataclasses
import functools
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from ddim_jax.checkpoints import tensor_names
from ddim_jax.checkpoints.tensors import to_ours, to_theirs
from ddim_jax.networks import DiT, TextUNet
from ddim_jax.networks.autoencoder import AutoencoderKL
from ddim_jax.networks.clip import ClipText
from ddim_jax.networks.tiny_autoencoder import AutoencoderTiny

GOLDEN = Path(__file__).parent / "fixtures" / "latent_networks.npz"
COPIES = re.compile(r"transformer_blocks\.\d+\.norm1\.emb")


def random(name: str, *shape: int) -> np.ndarray:
    """Normal numbers, the same for a name always."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor that nothing hides behind: what starts at 0 or 1 is random too."""
    value = random(COPIES.sub("emb", name), *shape)
    if len(shape) > 1:
        return value * np.float32(np.prod(shape[1:]) ** -0.5)
    return 0.1 * value + np.float32("norm" in name and name.endswith("weight"))


@dataclasses.dataclass(frozen=True)
class Case:
    """One network here and there.

    Attributes:
        net: ours.
        names: its function of `tensor_names`.
        theirs: makes torch's.
        arguments: arrays, as ours takes them; the first is [B, H, W, C] or ids.
        run: (net, params, arguments) -> outputs by name.
        run_theirs: (torch network, arguments) -> the same as torch tensors, channels last.
        init: what `net.init` takes.
        gradient: whether its loss is differentiated too.
    """

    net: Any
    names: Callable
    theirs: Callable[[], Any]
    arguments: tuple
    run: Callable
    run_theirs: Callable
    init: tuple = ()
    gradient: bool = False

    def shapes(self):
        """Shapes of our parameters."""
        return jax.eval_shape(self.net.init, jax.random.key(0), *self.init or self.arguments)[
            "params"
        ]

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights, by the names of torch's network."""
        empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), self.shapes())
        shapes = to_theirs(self.names(self.net), empty)
        return {name: weight(name, value.shape) for name, value in shapes.items()}

    def params(self):
        """The weights, as our network takes them."""
        tensors = self.tensors()
        return to_ours(self.names(self.net, tensors), tensors)


def target(name: str, output: Any) -> np.ndarray:
    return random(f"target of {name}", *output.shape)


# --- diffusion networks ---------------------------------------------------------------------------

TIMES = np.array([999.0, 17.0], np.float32)


def told(net) -> dict[str, np.ndarray]:
    """Inputs of a network for two samples."""
    given = {name: random(name, 2, *put.shape) for name, put in net.inputs.items()}
    if getattr(net, "vocabulary", 0):
        given["text"] = np.abs(1000 * given["text"]).astype(np.int32) % net.vocabulary
    given |= {"guidance": np.array([7.5, 1.5], np.float32), "label": np.array([3, 10], np.int32)}
    sizes = [[1024, 1024, 0, 0, 1024, 1024], [512, 768, 3, 5, 1024, 512]]
    given["sizes"] = np.array(sizes, np.float32)
    return {name: given[name] for name in net.inputs}


def run_net(net, params, x, t, inputs):
    return {"F": net.apply({"params": params}, x, t, inputs)}


def nchw(x):
    import torch

    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1)


def run_text_unet(net, x, t, inputs):
    import torch
    from diffusers import LatentConsistencyModelPipeline as Pipeline

    put, given = {name: torch.tensor(value) for name, value in inputs.items()}, {}
    if "vector" in put:
        given["added_cond_kwargs"] = {"text_embeds": put["vector"], "time_ids": put["sizes"]}
    if "guidance" in put:
        embed, dim = Pipeline.get_guidance_scale_embedding, net.config.time_cond_proj_dim
        given["timestep_cond"] = embed(None, put["guidance"] - 1, dim)
    if "label" in put:
        given["class_labels"] = put["label"]
    return {"F": nhwc(net(nchw(x), torch.tensor(t), put["text"], **given).sample)}


def text_unet(
    theirs: dict, channels: int = 4, gradient: bool = False, size=(8, 12), **options
) -> Case:
    """A TextUNet of two or three levels, and diffusers' of `theirs` beside what both have."""
    options = dict(text_length=7, context_dim=24, num_blocks=1) | options
    net = TextUNet(**options)
    levels = [bool(depth) for depth in net.depths]

    def make():
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel(
            in_channels=channels, block_out_channels=net.widths, layers_per_block=net.num_blocks,
            cross_attention_dim=net.context_dim, norm_num_groups=net.groups, sample_size=8,
            attention_head_dim=net.heads, time_cond_proj_dim=net.guidance_dim or None,
            num_class_embeds=net.num_classes or None,
            down_block_types=[("DownBlock2D", "CrossAttnDownBlock2D")[yes] for yes in levels],
            up_block_types=[("UpBlock2D", "CrossAttnUpBlock2D")[yes] for yes in reversed(levels)],
            **theirs,
        )  # fmt: skip

    names = functools.partial(
        tensor_names.text_unet, linear=theirs.get("use_linear_projection", False)
    )
    arguments = random("x", 2, *size, channels), TIMES, told(net)
    return Case(net, names, make, arguments, run_net, run_text_unet, gradient=gradient)


def run_dit(net, x, t, inputs):
    import torch

    label = {"class_labels": torch.tensor(inputs["label"])}
    return {"F": nhwc(net(nchw(x), torch.tensor(t), **label).sample)[..., :4]}


def run_wide_dit(net, x, t, inputs):
    """What diffusers makes of a picture that is not square, which it puts together wrongly."""
    found = []
    hook = net.proj_out_2.register_forward_hook(lambda *args: found.append(args[-1]))
    try:
        run_dit(net, x, t, inputs)
    except RuntimeError:
        pass
    hook.remove()
    patches = found[0].reshape(2, x.shape[1] // 2, x.shape[2] // 2, 2, 2, 8)
    return {"F": patches.permute(0, 1, 3, 2, 4, 5).reshape(*x.shape[:3], 8)[..., :4]}


def make_dit():
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=7, in_channels=4, out_channels=8, num_layers=3,
        sample_size=8, num_embeds_ada_norm=11, norm_elementwise_affine=False,
    )  # fmt: skip


def dit(height: int, width: int, run_theirs: Callable, gradient: bool = False, **options) -> Case:
    diffusers_own = dict(time_embedding="dit", eps=1e-5, unused_channels=4)
    net = DiT(width=28, depth=3, heads=4, num_classes=11, **diffusers_own, **options)
    arguments = random("x", 2, height, width, 4), TIMES, told(net)
    return Case(net, tensor_names.dit, make_dit, arguments, run_net, run_theirs, gradient=gradient)


def make_sit():
    """The network of SiT (and DiT) from its paper, under the names of the authors' files."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    def norm(x, shift, scale):
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return x * (1 + scale[:, None]) + shift[:, None]

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.attn = nn.ModuleDict(
                {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
            )
            self.mlp = nn.ModuleDict(
                {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
            )
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

        def forward(self, x, c):
            a, b, gate_0, d, e, gate_1 = self.adaLN_modulation(c).chunk(6, dim=1)
            qkv = self.attn["qkv"](norm(x, a, b)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            h = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
            x = x + gate_0[:, None] * self.attn["proj"](h)
            h = F.gelu(self.mlp["fc1"](norm(x, d, e)), approximate="tanh")
            return x + gate_1[:, None] * self.mlp["fc2"](h)

    class SiT(nn.Module):
        def __init__(self, width=28, depth=3, classes=11):
            super().__init__()
            embed = lambda layers: nn.ModuleDict(layers)  # noqa: E731
            self.x_embedder = embed({"proj": nn.Conv2d(4, width, 2, 2)})
            mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
            self.t_embedder = embed({"mlp": mlp})
            self.y_embedder = embed({"embedding_table": nn.Embedding(classes + 1, width)})
            self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
            modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
            last = {"adaLN_modulation": modulation, "linear": nn.Linear(width, 4 * 8)}
            self.final_layer = embed(last)

        def forward(self, x, t, label):
            rows, columns = x.shape[2] // 2, x.shape[3] // 2
            h = self.x_embedder["proj"](x).flatten(2).transpose(1, 2)
            omega = 10000.0 ** (-torch.arange(7, dtype=torch.float64) / 7)
            line = lambda n: torch.outer(torch.arange(n, dtype=torch.float64), omega)  # noqa: E731
            waves = [torch.cat([a.sin(), a.cos()], 1).float() for a in (line(columns), line(rows))]
            places = torch.cat(
                [waves[0].repeat(rows, 1), waves[1].repeat_interleave(columns, 0)], 1
            )
            h = h + places
            angles = t[:, None] * torch.exp(-np.log(10000) * torch.arange(128) / 128)
            c = self.t_embedder["mlp"](torch.cat([angles.cos(), angles.sin()], 1))
            c = c + self.y_embedder["embedding_table"](label)
            for block in self.blocks:
                h = block(h, c)
            h = norm(h, *self.final_layer["adaLN_modulation"](c).chunk(2, dim=1))
            h = self.final_layer["linear"](h).unflatten(-1, (2, 2, 8)).unflatten(1, (rows, columns))
            return h.permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2, 3)[..., :4]

    return SiT()


def run_sit(net, x, t, inputs):
    import torch

    return {"F": net(nchw(x), torch.tensor(t), torch.tensor(inputs["label"]))}


def sit() -> Case:
    net = DiT(width=28, depth=3, heads=4, num_classes=11, unused_channels=4)
    arguments = random("x", 2, 6, 10, 4), np.array([0.9, 0.1], np.float32), told(net)
    return Case(net, tensor_names.dit_authors, make_sit, arguments, run_net, run_sit)


# --- autoencoders and text encoders ---------------------------------------------------------------


def run_autoencoder(net, params, x, z):
    run = functools.partial(net.apply, {"params": params})
    moments = run(x, method="encode")
    return {"mean": moments.mean, "std": moments.std, "image": run(z, method="decode")}


def run_their_autoencoder(net, x, z):
    scale, shift = net.config.scaling_factor, net.config.shift_factor or 0
    moments = net.encode(nchw(x)).latent_dist
    image = net.decode(nchw(z) / scale + shift).sample
    mean, std = (moments.mean - shift) * scale, moments.std * scale
    return {name: nhwc(a) for name, a in {"mean": mean, "std": std, "image": image}.items()}


def autoencoder(**options) -> Case:
    net = AutoencoderKL(widths=(16, 32, 48), groups=8, num_blocks=1, **options)

    def make():
        from diffusers import AutoencoderKL

        return AutoencoderKL(
            block_out_channels=net.widths, layers_per_block=1, latent_channels=net.latent_channels,
            norm_num_groups=8, use_quant_conv=net.quant, use_post_quant_conv=net.quant,
            down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
            mid_block_add_attention=net.attention, scaling_factor=net.scale,
            shift_factor=net.shift, sample_size=16,
        )  # fmt: skip

    x, z = random("x", 2, 16, 24, 3), random("z", 2, 4, 6, net.latent_channels)
    arguments, init = (x, z), (x,)
    kinds = (make, arguments, run_autoencoder, run_their_autoencoder, init)
    return Case(net, tensor_names.autoencoder_kl, *kinds)


def run_their_tiny(net, x, z):
    mean, image = net.encode(nchw(x)).latents, net.decode(nchw(z)).sample
    return {"mean": nhwc(mean), "std": nhwc(0 * mean), "image": nhwc(image)}


def tiny() -> Case:
    net = AutoencoderTiny(width=12, encoder_blocks=(1, 2, 1), decoder_blocks=(2, 1, 1))

    def make():
        from diffusers import AutoencoderTiny

        return AutoencoderTiny(
            encoder_block_out_channels=(12, 12, 12), decoder_block_out_channels=(12, 12, 12),
            num_encoder_blocks=net.encoder_blocks, num_decoder_blocks=net.decoder_blocks,
        )  # fmt: skip

    x, z = random("x", 2, 16, 24, 3), 4 * random("z", 2, 4, 6, 4)
    kinds = (make, (x, z), run_autoencoder, run_their_tiny, (x,))
    return Case(net, tensor_names.autoencoder_tiny, *kinds)


IDS = np.array([[97, 4, 8, 15, 16, 98, 98, 98], [97, 23, 42, 98, 0, 0, 0, 0]])


def run_clip(net, params, ids):
    return net.apply({"params": params}, ids)._asdict()


def run_their_clip(net, ids):
    import torch

    out = net(torch.tensor(ids), output_hidden_states=True)
    pooled = out.text_embeds if "text_embeds" in out else out.pooler_output
    return {"last": out.last_hidden_state, "penultimate": out.hidden_states[-2], "pooled": pooled}


def clip(activation: str, projection: int) -> Case:
    net = ClipText(99, 10, 30, 4, 6, 37, activation, projection, end=98)

    def make():
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        config = CLIPTextConfig(
            vocab_size=99, max_position_embeddings=10, hidden_size=30, num_hidden_layers=4,
            num_attention_heads=6, intermediate_size=37, hidden_act=activation,
            projection_dim=projection or 30, bos_token_id=97, eos_token_id=98, pad_token_id=1,
        )  # fmt: skip
        return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)

    return Case(net, tensor_names.clip_text, make, (IDS,), run_clip, run_their_clip)


SDXL = dict(
    addition_embed_type="text_time", addition_time_embed_dim=10, use_linear_projection=True,
    projection_class_embeddings_input_dim=20 + 6 * 10, transformer_layers_per_block=(1, 2),
)  # fmt: skip
CASES = {
    "sd1": text_unet({}, widths=(32, 64), depths=(1, 0), heads=(4, 4), gradient=True),
    "sd1, odd sizes": text_unet(
        {}, size=(9, 6), widths=(8, 16, 16), depths=(1, 0, 0), heads=(2, 2, 2), groups=4
    ),
    "sd2, inpainting, three levels, odd head widths": text_unet(
        dict(use_linear_projection=True, transformer_layers_per_block=(1, 2, 1)), channels=9,
        widths=(20, 36, 36), depths=(1, 2, 0), heads=(4, 12, 4), groups=4,
    ),
    "sdxl": text_unet(
        SDXL, widths=(16, 24), depths=(0, 2), mid_depth=2, heads=(2, 3), groups=8, vector_dim=20,
        sizes=6, size_dim=10,
    ),
    "lcm, two blocks": text_unet(
        {}, widths=(16, 24), depths=(1, 0), heads=(2, 2), groups=8, guidance_dim=16, num_blocks=2
    ),
    "x4 upscaler": text_unet(
        dict(only_cross_attention=(True, False)), channels=7, widths=(16, 24), depths=(1, 1),
        heads=(2, 2), groups=8, num_classes=11, text_only=(True, False),
    ),
    "dit": dit(8, 8, run_dit, gradient=True),
    "dit, not square": dit(8, 4, run_wide_dit, position_grid=4),
    "sit, not square": sit(),
    "autoencoder": autoencoder(),
    "autoencoder, 16 channels": autoencoder(
        latent_channels=16, quant=False, attention=False, scale=0.36, shift=0.12
    ),
    "tiny autoencoder": tiny(),
    "clip": clip("quick_gelu", 0),
    "openclip": clip("gelu", 24),
}  # fmt: skip


def ours(name: str) -> dict[str, np.ndarray]:
    """Outputs of our network; with a gradient, its product with a random direction by parameter."""
    case = CASES[name]
    if not case.gradient:
        run = functools.partial(case.run, case.net)
        return jax.tree.map(np.asarray, jax.jit(run)(case.params(), *case.arguments))

    def loss(params):
        outputs = case.run(case.net, params, *case.arguments)
        return jnp.square(outputs["F"] - target(name, outputs["F"])).mean(), outputs

    (_, outputs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(case.params())
    return jax.tree.map(np.asarray, outputs) | {"gradient": along(flatten_dict(grads, sep="/"))}


def along(grads: dict[str, Any]) -> np.ndarray:
    """Each gradient's product with a random direction, by parameters in the order of names."""
    return np.array(
        [np.vdot(grads[name], random(name, *grads[name].shape)) for name in sorted(grads)]
    )


def theirs(name: str) -> dict[str, np.ndarray]:
    """The same of torch's network."""
    import torch

    case = CASES[name]
    net, tensors = case.theirs().eval(), case.tensors()
    if name.endswith("clip") and not any(k.startswith("text_model") for k in net.state_dict()):
        tensors = {key.removeprefix("text_model."): value for key, value in tensors.items()}
    net.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()})
    outputs = case.run_theirs(net, *case.arguments)
    found = {key: value.detach().numpy() for key, value in outputs.items()}
    if not case.gradient:
        return found
    torch.square(outputs["F"] - torch.tensor(target(name, outputs["F"]))).mean().backward()
    grads = {
        key: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        for key, p in net.named_parameters()
    }
    return found | {"gradient": along(gradients(case, grads))}


def gradients(case: Case, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients of torch's tensors as those of our parameters: of copies, the sum."""
    entries = []
    for entry in case.names(case.net):
        if entry.copies:
            first, *others = entry.theirs
            tensors[first] = tensors[first] + sum(tensors.pop(other) for other in others)
            entry = entry._replace(theirs=(first,))
        entries.append(entry)
    wanted = set(flatten_dict(case.shapes(), sep="/"))
    used = [entry for entry in entries if entry.ours in wanted]
    return flatten_dict(to_ours(used, tensors), sep="/")


if __name__ == "__main__":
    found = {f"{name}/{key}": value for name in CASES for key, value in theirs(name).items()}
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **found)
    print(f"{len(found)} arrays, {GOLDEN.stat().st_size} bytes in {GOLDEN}")
