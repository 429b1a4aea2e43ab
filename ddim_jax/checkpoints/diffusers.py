"""Networks of Hugging Face diffusers: a UNet2DModel folder read into ours, and written from it.

    folder/unet/config.json, diffusion_pytorch_model.safetensors      the network
    folder/scheduler/scheduler_config.json                            betas, prediction, recipe

or all in `folder` itself. Only names and layouts differ: convolutions are [O, I, 3, 3] there and
[3, 3, I, O] here, dense layers transposed, and q, k, v are one kernel here.
"""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from ddim_jax import experiment, files, schedules
from ddim_jax.checkpoints.diffusers_schedulers import scheduler, sections
from ddim_jax.checkpoints.scheduler_options import BETAS, PREDICTIONS
from ddim_jax.names import make
from ddim_jax.networks.layers import group_count

__all__ = ["WEIGHTS", "is_folder", "read", "scheduler", "write"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
PLAIN, ATTENTION = ("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D")
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of attention layers, before diffusers 0.15."""

FIXED = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "add_attention": True,
    "class_embed_type": None,
    "downsample_type": "conv",
    "upsample_type": "conv",
}
"""What our network has no other value of."""


def is_folder(path: Path) -> bool:
    """Whether a folder holds a diffusers network."""
    return _config_path(path) is not None


def _config_path(path: Path) -> Path | None:
    for folder in (path / "unet", path):
        file = folder / "config.json"
        if file.exists() and json.loads(file.read_text()).get("_class_name") == "UNet2DModel":
            return file
    return None


def read(path: Path) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
    """Our config and parameters of a diffusers folder.

    Raises:
        FileNotFoundError: it has no weights in safetensors.
        ValueError: a block, an option or a schedule that our network does not have.
    """
    file = _config_path(path)
    options = json.loads(file.read_text())
    weights = file.parent / WEIGHTS
    if not weights.exists():
        raise FileNotFoundError(
            f"{file.parent} has no {WEIGHTS}; save the network with safe_serialization=True"
        )
    config = ml_collections.ConfigDict()
    config.data = dict(name="diffusers:" + path.name, image_shape=_image_shape(options, file))
    config.model = _model(options, file)
    file = path / "scheduler" / "scheduler_config.json"
    file = file if file.exists() else path / "scheduler_config.json"
    config.update(_drawing(json.loads(file.read_text()) if file.exists() else {}))
    config.loss = dict(name="diffusion")
    tensors = {
        _new_name(name): value for name, value in safetensors.numpy.load_file(weights).items()
    }
    flat = {}
    for ours, theirs in _names(config.model, tensors):
        missing = [name for name in theirs if name not in tensors]
        if missing:
            raise ValueError(f"{weights} lacks {missing[0]}, which its config.json asks for")
        flat[ours] = _ours(ours, [tensors.pop(name) for name in theirs])
    if tensors:
        raise ValueError(
            f"{weights} holds {sorted(tensors)[0]}, for which our network has no place"
        )
    return config, unflatten_dict(flat, sep="/")


def write(path: Path, config: ml_collections.ConfigDict, params: Any) -> None:
    """Writes a network to a new folder, which diffusers' `UNet2DModel.from_pretrained` reads.

    Args:
        path: of the folder; must not exist.
        config: of the network.
        params: its parameters.

    Raises:
        FileExistsError: the folder exists.
        ValueError: diffusers has no such network or schedule, or `read` would refuse the folder or
            take it for another network. Nothing is written.
    """
    files.check_new(path, overwrite=None)
    options, scheduler = _their_model(config), _their_scheduler(config)
    _check_read_again(config, options, scheduler)
    flat = flatten_dict(jax.device_get(params), sep="/")
    tensors = {}
    for ours, theirs in _names(config.model, _EveryName()):
        if ours in flat:
            tensors |= dict(zip(theirs, _theirs(flat.pop(ours), ours, theirs), strict=True))
    if flat:
        raise ValueError(f"diffusers has no place for the parameter {sorted(flat)[0]}")
    for folder, name, content in (
        ("unet", "config.json", options),
        ("scheduler", "scheduler_config.json", scheduler),
    ):
        (path / folder).mkdir(parents=True)
        files.write_json(path / folder / name, content)
    data = safetensors.numpy.save(tensors, {"format": "pt"})
    files.replace(path / "unet" / WEIGHTS, lambda file: file.write(data))


def _check_read_again(config: ml_collections.ConfigDict, options: dict, scheduler: dict) -> None:
    """Raises ValueError unless `read` would make the same network and schedule of the folder."""
    net, place = experiment.build_network(config.model), Path("the folder to be written")
    again, parts = _model(options, place), _drawing(scheduler)
    known = {"channel_mults", "attention_resolutions", "group_channels", "null_label"}  # by content
    for name in sorted(set(again) - known):
        if getattr(net, name) != again[name]:
            raise ValueError(
                f"diffusers would read this network with {name}={again[name]!r}, it has "
                f"{getattr(net, name)!r}"
            )
    made = [
        make(schedules.SCHEDULES, section, "schedule")
        for section in (config.schedule, parts["schedule"])
    ]
    t = np.arange(1, made[0].num_steps + 1) / made[0].num_steps
    alphas = [schedule.level(t).alpha for schedule in made]
    if made[0].num_steps != made[1].num_steps or not np.allclose(*alphas, atol=1e-4):
        raise ValueError(f"diffusers would read another schedule than {config.schedule.to_dict()}")


class _EveryName:
    def __contains__(self, name: str) -> bool:
        return True


def _their_model(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """UNet2DModel's config.json."""
    net = experiment.build_network(config.model)
    only = {"patch_size": 1, "scalars": (), "resample_blocks": False}
    only |= {"time_scale": 1.0}
    only |= {"null_label": False} if net.num_classes else {}
    only |= {} if net.head_channels else {"num_heads": 1}  # there heads have a width, not a number
    for name, value in only.items():
        if getattr(net, name) != value:
            raise ValueError(f"diffusers has no network with {name}={getattr(net, name)!r}")
    widths = [int(net.channels * mult) for mult in net.channel_mults]
    if widths[0] != net.channels:
        raise ValueError(
            f"diffusers has no network whose first level has {widths[0]} channels of "
            f"{net.channels}, only with channel_mults that begin with 1"
        )
    sizes = set(widths) | {a + b for a in widths for b in widths}
    groups, *others = sorted({group_count(size, net.group_channels) for size in sizes})
    if others:
        raise ValueError(
            f"diffusers has one number of norm groups, this network {groups} to {others[-1]}"
        )
    height, width, channels = config.data.image_shape
    if height != width:
        raise ValueError(f"diffusers needs square images, got {height} x {width}")
    attends = [height >> level in net.attention_resolutions for level in range(len(widths))]
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height,
        "in_channels": channels,
        "out_channels": net.out_channels,
        "block_out_channels": widths,
        "layers_per_block": net.num_blocks,
        "down_block_types": [(PLAIN, ATTENTION)[yes][0] for yes in attends],
        "up_block_types": [(PLAIN, ATTENTION)[yes][1] for yes in reversed(attends)],
        "attention_head_dim": net.head_channels,
        "dropout": net.dropout,
        "num_class_embeds": net.num_classes or None,
        "resnet_time_scale_shift": "scale_shift" if net.scale_shift else "default",
        "downsample_padding": int(net.down_padding == "symmetric"),
        "freq_shift": int(net.time_embedding != "adm"),
        "flip_sin_to_cos": net.time_embedding != "ddpm",
        "norm_eps": net.norm_eps,
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,
    }


def _their_scheduler(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """DDIMScheduler's scheduler_config.json."""
    kinds = {ours: theirs for theirs, ours in BETAS.items()}
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items() if ours != "flow"}
    schedule, prediction = config.schedule.to_dict(), config.prediction.name
    if schedule["name"] not in kinds or prediction not in predictions:
        raise ValueError(
            f"diffusers has no schedule {schedule['name']!r} with prediction {prediction!r}; it "
            f"has {', '.join(kinds)} and {', '.join(predictions)}"
        )
    rescaled = schedule.pop("zero_terminal_snr", False)
    drawn = {"interpolation", "model_time", "prior", "single", "last_alpha"}  # of other samplers
    schedule = {name: value for name, value in schedule.items() if name not in drawn}
    if extra := sorted(set(schedule) - {"name", "num_steps", "beta_start", "beta_end"}):
        raise ValueError(f"diffusers has no {extra[0]} of schedule {schedule['name']!r}")
    made = inspect.signature(schedules.SCHEDULES[schedule["name"]]).bind(
        **{name: value for name, value in schedule.items() if name != "name"}
    )
    made.apply_defaults()
    betas = {k: made.arguments[k] for k in ("beta_start", "beta_end") if k in made.arguments}
    betas |= {"rescale_betas_zero_snr": True} if rescaled else {}
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": made.arguments["num_steps"],
        "beta_schedule": kinds[schedule["name"]],
        "prediction_type": predictions[prediction],
        "clip_sample": config.sample.clip in ("static", "static_x0"),
        "timestep_spacing": _their_spacing(config.sample),
        **betas,
    }


def _their_spacing(sample: ml_collections.ConfigDict) -> str:
    """Of a uniform stride its own; trailing, which begins at pure noise, for others."""
    options = dict(sample.get("stride_options") or {})
    uniform = sample.get("stride") in (None, "uniform")
    return options.get("spacing", "trailing") if uniform else "trailing"


def _image_shape(options: dict[str, Any], file: Path) -> tuple[int, int, int]:
    size = options.get("sample_size")
    if not isinstance(size, int):
        raise ValueError(f"{file} needs one whole number as its sample_size, got {size!r}")
    return (size, size, options["in_channels"])


def _model(options: dict[str, Any], file: Path) -> dict[str, Any]:
    """The arguments of our UNet."""
    for name, value in FIXED.items():
        if options.get(name, value) != value:
            raise ValueError(f"{file}: {name}={options[name]!r} is not supported, only {value!r}")
    widths = options["block_out_channels"]
    down, up = options["down_block_types"], options["up_block_types"]
    for kind in (*down, *up):
        if kind not in PLAIN + ATTENTION:
            known = ", ".join(PLAIN + ATTENTION)
            raise ValueError(f"{file}: block {kind} is not supported, only {known}")
    attends = [kind in ATTENTION for kind in down]
    if attends != [kind in ATTENTION for kind in reversed(up)]:
        raise ValueError(f"{file}: attention on the way down and up differs, {down} and {up}")
    times = {(1, False): "ddpm", (0, True): "adm", (1, True): "dit"}
    embedding = (options.get("freq_shift", 0), options.get("flip_sin_to_cos", True))
    if embedding not in times:
        raise ValueError(
            f"{file}: freq_shift and flip_sin_to_cos must be 1 and false, 0 and true, or 1 and "
            f"true, got {embedding[0]} and {embedding[1]}"
        )
    shifts = options.get("resnet_time_scale_shift", "default")
    if shifts not in ("default", "scale_shift"):
        raise ValueError(f"{file}: resnet_time_scale_shift={shifts!r} is not supported")
    groups = options.get("norm_num_groups", 32)
    default = groups if shifts == "default" else None  # what diffusers takes for None
    if (options.get("attn_norm_num_groups") or default) != groups:
        raise ValueError(
            f"{file}: attn_norm_num_groups={options.get('attn_norm_num_groups')} with "
            f"resnet_time_scale_shift={shifts!r} is not supported, only {groups}"
        )
    return dict(
        out_channels=options["out_channels"],
        channels=widths[0],
        channel_mults=tuple(_multiple(width, widths[0]) for width in widths),
        num_blocks=options["layers_per_block"],
        attention_resolutions=tuple(
            options["sample_size"] >> level for level, yes in enumerate(attends) if yes
        ),
        head_channels=options.get("attention_head_dim", 8),
        dropout=options.get("dropout", 0.0),
        num_classes=options.get("num_class_embeds") or 0,
        null_label=False,
        scale_shift=shifts == "scale_shift",
        down_padding="symmetric" if options.get("downsample_padding", 1) else "same",
        time_embedding=times[embedding],
        norm_eps=options.get("norm_eps", 1e-5),
        group_channels=_group_channels(widths, groups, file),
    )


def _multiple(width: int, first: int) -> float:
    """What the first width is multiplied by, whose whole part is the other one."""
    multiple = width / first
    return multiple if int(first * multiple) == width else float(np.nextafter(multiple, np.inf))


def _group_channels(widths: list[int], groups: int, file: Path) -> int:
    """Ours by least channels of a group; the number that gives as many groups everywhere."""
    sizes = set(widths) | {a + b for a in widths for b in widths}
    for least in range(1, max(sizes) + 1):
        if all(group_count(size, least) == groups for size in sizes):
            return least
    raise ValueError(
        f"{file}: norm_num_groups={groups} with block_out_channels={widths} is not supported: our "
        "norms have the most groups, up to 32, that a least number of channels allows"
    )


def _drawing(options: dict[str, Any]) -> dict[str, Any]:
    """Our sections "schedule", "prediction" and "sample" of a scheduler_config.json."""
    parts = sections(options)
    parts["schedule"].pop("single", None)  # a network does not see the seventh digit
    kind = options.get("_class_name", "DDIMScheduler")
    few = {"DDPMScheduler": options.get("num_train_timesteps", 1000)}
    few |= {"LCMScheduler": 4, "TCDScheduler": 4}
    parts["sample"] |= {"steps": few.get(kind, 50), "num_samples": 16}
    return parts


def _new_name(name: str) -> str:
    parts = name.split(".")
    if "attentions" in parts:
        parts = [OLD_NAMES.get(part, part) for part in parts]
    return ".".join(parts)


# --- names ----------------------------------------------------------------------------------------


def _names(model: Any, tensors: Any) -> Iterator[tuple[str, list[str]]]:
    """(our parameter, their tensors) of the whole network.

    Args:
        model: the arguments of our UNet.
        tensors: names of theirs, by which shortcuts and attention are found.
    """
    levels = len(model["channel_mults"])
    yield from _layer("conv_in", "conv_in")
    yield from _layer("time_0", "time_embedding.linear_1")
    yield from _layer("time_1", "time_embedding.linear_2")
    if model.get("num_classes", 0):
        yield "label/embedding", ["class_embedding.weight"]
    for level in range(levels):
        up = f"up_blocks.{levels - 1 - level}"
        for i in range(model["num_blocks"]):
            yield from _block(f"down_{level}_{i}", f"down_blocks.{level}", i, tensors)
        for i in range(model["num_blocks"] + 1):
            yield from _block(f"up_{level}_{i}", up, i, tensors)
        if level < levels - 1:
            yield from _layer(f"down_{level}_resample", f"down_blocks.{level}.downsamplers.0.conv")
        if level > 0:
            yield from _layer(f"up_{level}_resample", f"{up}.upsamplers.0.conv")
    yield from _res("mid_0", "mid_block.resnets.0", tensors)
    yield from _attention("mid_attention", "mid_block.attentions.0")
    yield from _res("mid_1", "mid_block.resnets.1", tensors)
    yield from _norm("norm_out", "conv_norm_out")
    yield from _layer("conv_out", "conv_out")


def _layer(ours: str, theirs: str) -> Iterator[tuple[str, list[str]]]:
    yield f"{ours}/kernel", [f"{theirs}.weight"]
    yield f"{ours}/bias", [f"{theirs}.bias"]


def _norm(ours: str, theirs: str) -> Iterator[tuple[str, list[str]]]:
    yield f"{ours}/scale", [f"{theirs}.weight"]
    yield f"{ours}/bias", [f"{theirs}.bias"]


def _block(ours: str, theirs: str, i: int, tensors: Any) -> Iterator[tuple[str, list[str]]]:
    yield from _res(ours, f"{theirs}.resnets.{i}", tensors)
    if f"{theirs}.attentions.{i}.to_q.weight" in tensors:
        yield from _attention(f"{ours}_attention", f"{theirs}.attentions.{i}")


def _res(ours: str, theirs: str, tensors: Any) -> Iterator[tuple[str, list[str]]]:
    yield from _norm(f"{ours}/norm_0", f"{theirs}.norm1")
    yield from _layer(f"{ours}/conv_0", f"{theirs}.conv1")
    yield from _layer(f"{ours}/emb", f"{theirs}.time_emb_proj")
    yield from _norm(f"{ours}/norm_1", f"{theirs}.norm2")
    yield from _layer(f"{ours}/conv_1", f"{theirs}.conv2")
    if f"{theirs}.conv_shortcut.weight" in tensors:
        yield from _layer(f"{ours}/skip", f"{theirs}.conv_shortcut")


def _attention(ours: str, theirs: str) -> Iterator[tuple[str, list[str]]]:
    yield from _norm(f"{ours}/norm", f"{theirs}.group_norm")
    for part in ("weight", "bias"):
        name = "kernel" if part == "weight" else "bias"
        yield f"{ours}/qkv/{name}", [f"{theirs}.to_{letter}.{part}" for letter in "qkv"]
    yield from _layer(f"{ours}/out", f"{theirs}.to_out.0")


def _ours(name: str, values: list[np.ndarray]) -> np.ndarray:
    """One of our parameters from theirs; those of q, k, v side by side."""
    turned = []
    for value in values:
        value = np.asarray(value, np.float32)
        if name.endswith("/kernel") and value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
            value = value[0, 0] if value.shape[:2] == (1, 1) else value
        elif name.endswith("/kernel"):
            value = value.T
        turned.append(value)
    return np.concatenate(turned, axis=-1) if len(turned) > 1 else turned[0]


def _theirs(value: np.ndarray, name: str, targets: list[str]) -> list[np.ndarray]:
    """Their tensors from one of our parameters."""
    parts = np.split(np.asarray(value, np.float32), len(targets), axis=-1)
    if not name.endswith("/kernel"):
        return [np.ascontiguousarray(part) for part in parts]
    if name.endswith("/skip/kernel"):  # a 1x1 convolution there, a dense layer here
        parts = [part[None, None] for part in parts]
    turned = [part.transpose(3, 2, 0, 1) if part.ndim == 4 else part.T for part in parts]
    return [np.ascontiguousarray(part) for part in turned]
