"""Networks of Hugging Face diffusers: a UNet2DModel folder read into ours, and written from it.

    folder/unet/config.json, diffusion_pytorch_model.safetensors      the network
    folder/scheduler/scheduler_config.json                            betas, prediction, recipe

or all in `folder` itself. `pipelines.py` has those with an autoencoder or a text.
"""

import inspect
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from ddim_jax import experiment, files, schedules
from ddim_jax.checkpoints import tensor_files, tensor_names
from ddim_jax.checkpoints.diffusers_schedulers import scheduler, sections
from ddim_jax.checkpoints.scheduler_options import BETAS, PREDICTIONS, Options
from ddim_jax.checkpoints.tensors import to_ours, to_theirs
from ddim_jax.names import check_range, make
from ddim_jax.networks.layers import group_count

__all__ = ["PIPELINES", "WEIGHTS", "is_folder", "read", "scheduler", "write"]

PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")
"""Classes of pipelines that draw pixels, of one UNet2DModel and a scheduler."""
STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
INDEX, SCHEDULER = "model_index.json", Path("scheduler", "scheduler_config.json")
PLAIN, ATTENTION = ("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D")
FIXED = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "add_attention": True,
    "mid_block_type": "UNetMidBlock2D",
    "time_embedding_dim": None,
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
        if file.exists() and files.read_json(file).get("_class_name") == "UNet2DModel":
            return file
    return None


def read(
    path: Path, dtype: str | None = "float32"
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
    """Our config and parameters of a diffusers folder.

    Args:
        path: of the folder.
        dtype: of the parameters; None: the files' own.

    Raises:
        FileNotFoundError: it has no weights in safetensors, or a pipeline no scheduler.
        ValueError: a block, an option or a schedule that our network does not have; a network of
            another pipeline, whose samples are no pixels.
    """
    file = _config_path(path)
    _check_pipeline(path)
    options = Options(str(file), files.read_json(file))
    tensors = tensor_files.in_folder(file.parent, STEM, dtype)
    config = ml_collections.ConfigDict()
    config.data = dict(name="diffusers:" + path.name, image_shape=_image_shape(options))
    config.model = _model(options)
    config.update(drawing(read_scheduler(path)))
    config.loss = dict(name="diffusion")
    net = experiment.build_network(config.model)
    try:
        return config, to_ours(tensor_names.unet(net, tensors), tensors, dtype)
    except ValueError as error:
        raise ValueError(f"{file.parent}: {error}") from None


def _check_pipeline(path: Path) -> None:
    """Raises an error for a folder of a pipeline that draws no pixels or has no scheduler."""
    index = _whole(path) / INDEX
    if not index.exists():
        return
    name = files.read_json(index).get("_class_name")
    if name not in PIPELINES:
        raise ValueError(
            f"{index} is of a {name}; a UNet2DModel is read alone and of {', '.join(PIPELINES)}, "
            "which draw pixels"
        )
    if _scheduler_file(path) is None:  # betas and prediction would be guessed
        raise FileNotFoundError(
            f"{index.parent / SCHEDULER} is missing; fetch the whole folder again"
        )


def read_scheduler(path: Path) -> dict[str, Any]:
    """The scheduler_config.json of a folder, or of the whole that it is in; {} if there is none."""
    file = _scheduler_file(path)
    return files.read_json(file) if file else {}


def _whole(path: Path) -> Path:
    """The folder; where it is that of a network alone, that of the pipeline which it may be in."""
    alone = (path / "config.json").exists() and not (path / INDEX).exists()
    return path.resolve().parent if alone else path


def _scheduler_file(path: Path) -> Path | None:
    places = (path / SCHEDULER, path / SCHEDULER.name, _whole(path) / SCHEDULER)
    return next((place for place in places if place.exists()), None)


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
    options, scheduler = _their_model(config), their_scheduler(config)
    _check_read_again(config, options, scheduler)
    net = experiment.build_network(config.model)
    tensors = to_theirs(tensor_names.unet(net), jax.device_get(params))
    with files.new_folder(Path(path)) as part:
        for folder, name, content in (
            ("unet", "config.json", options),
            ("scheduler", "scheduler_config.json", scheduler),
        ):
            (part / folder).mkdir()
            files.write_json(part / folder / name, content)
        tensor_files.save(part / "unet" / WEIGHTS, tensors, {"format": "pt"})


def _check_read_again(config: ml_collections.ConfigDict, options: dict, scheduler: dict) -> None:
    """Raises ValueError unless `read` would make the same network and schedule of the folder."""
    net, place = experiment.build_network(config.model), "the folder to be written"
    own = Options(place, options)
    own.get("in_channels"), own.get("sample_size")
    again, parts = _model(own), drawing(scheduler)
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
        **their_time_embedding(net.time_embedding),
        "norm_eps": net.norm_eps,
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,
    }


def their_scheduler(config: ml_collections.ConfigDict) -> dict[str, Any]:
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


def _image_shape(o: Options) -> tuple[int, int, int]:
    size = o.get("sample_size")
    if not isinstance(size, int):
        raise ValueError(f"{o.name} needs one whole number as its sample_size, got {size!r}")
    return (size, size, o.get("in_channels", 3))


def time_embedding(o: Options) -> str:
    """Ours of `freq_shift` and `flip_sin_to_cos`."""
    times = {(1, False): "ddpm", (0, True): "adm", (1, True): "dit"}
    embedding = (o.get("freq_shift", 0), o.get("flip_sin_to_cos", True))
    if embedding not in times:
        raise ValueError(
            f"{o.name}: freq_shift and flip_sin_to_cos must be 1 and false, 0 and true, or 1 and "
            f"true, got {embedding[0]} and {embedding[1]}"
        )
    return times[embedding]


def their_time_embedding(ours: str) -> dict[str, Any]:
    """`freq_shift` and `flip_sin_to_cos` of ours."""
    return {"freq_shift": int(ours != "adm"), "flip_sin_to_cos": ours != "ddpm"}


def _model(o: Options) -> dict[str, Any]:
    """The arguments of our UNet."""
    o.only(**FIXED)
    widths = o.get("block_out_channels", [224, 448, 672, 896])
    for width in widths:
        check_range(f"{o.name}: block_out_channels", width, "[1, 65536]", whole=True)
    down, up = (o.get(f"{way}_block_types", ()) for way in ("down", "up"))
    for kind in (*down, *up):
        if kind not in PLAIN + ATTENTION:
            known = ", ".join(PLAIN + ATTENTION)
            raise ValueError(f"{o.name}: block {kind} is not supported, only {known}")
    attends = [kind in ATTENTION for kind in down]
    if attends != [kind in ATTENTION for kind in reversed(up)]:
        raise ValueError(f"{o.name}: attention on the way down and up differs, {down} and {up}")
    embedding = time_embedding(o)
    kinds = {kind: kind for kind in ("default", "scale_shift")}
    shifts = o.choice("resnet_time_scale_shift", "default", kinds)
    groups = o.get("norm_num_groups", 32)
    default = groups if shifts == "default" else None  # what diffusers takes for None
    if (o.get("attn_norm_num_groups") or default) != groups:
        raise ValueError(
            f"{o.name}: attn_norm_num_groups={o.get('attn_norm_num_groups')} with "
            f"resnet_time_scale_shift={shifts!r} is not supported, only {groups}"
        )
    o.get("num_train_timesteps")  # the scheduler's matters
    given, drawn = o.get("in_channels", 3), o.get("out_channels", 3)
    if given != drawn:
        o.refuse("in_channels", given, f"{drawn}, which are its out_channels: a network of pixels")
    arguments = dict(
        out_channels=drawn,
        channels=widths[0],
        channel_mults=tuple(_multiple(width, widths[0]) for width in widths),
        num_blocks=o.get("layers_per_block", 2),
        attention_resolutions=tuple(
            o.get("sample_size") >> level for level, yes in enumerate(attends) if yes
        ),
        head_channels=o.get("attention_head_dim", 8),
        dropout=o.get("dropout", 0.0),
        num_classes=o.get("num_class_embeds") or 0,
        null_label=False,
        scale_shift=shifts == "scale_shift",
        down_padding="symmetric" if o.get("downsample_padding", 1) else "same",
        time_embedding=embedding,
        norm_eps=o.get("norm_eps", 1e-5),
        group_channels=_group_channels(widths, groups, o.name),
    )
    o.check_all_known(set())
    return arguments


def _multiple(width: int, first: int) -> float:
    """What the first width is multiplied by, whose whole part is the other one."""
    multiple = width / first
    return multiple if int(first * multiple) == width else float(np.nextafter(multiple, np.inf))


def _group_channels(widths: list[int], groups: int, file: str) -> int:
    """Ours by least channels of a group; the number that gives as many groups everywhere."""
    sizes = set(widths) | {a + b for a in widths for b in widths}
    for least in range(1, max(sizes) + 1):
        if all(group_count(size, least) == groups for size in sizes):
            return least
    raise ValueError(
        f"{file}: norm_num_groups={groups} with block_out_channels={widths} is not supported: our "
        "norms have the most groups, up to 32, that a least number of channels allows"
    )


def drawing(options: dict[str, Any]) -> dict[str, Any]:
    """Our sections "schedule", "prediction" and "sample" of a scheduler_config.json."""
    parts = sections(options)
    parts["schedule"].pop("single", None)  # a network does not see the seventh digit
    kind = options.get("_class_name", "DDIMScheduler")
    few = {"DDPMScheduler": options.get("num_train_timesteps", 1000)}
    few |= {"LCMScheduler": 4, "TCDScheduler": 4}
    parts["sample"] |= {"steps": few.get(kind, 50), "num_samples": 16}
    return parts
