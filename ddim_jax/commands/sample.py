"""Draws samples: `python sample.py [--checkpoint=runs/digits] [--solver=ddim] [--steps=20] ...`.

Without --checkpoint it draws digits from the model that comes with the package. `--out` is a
contact sheet (.png), all samples as arrays (.npz), of clips also a file that moves (.gif, .webp,
.apng, .mp4), or, without a suffix, a folder of PNG files: rerunning the command resumes it, and any
number of processes fill it together. Unset flags default to the checkpoint's config.
"""

import os
import sys
import time
from pathlib import Path

from absl import app, flags, logging

from ddim_jax.commands import clip_flags, recipe_flags
from ddim_jax.commands.flags import (
    DISTRIBUTED,
    PLAN,
    QUICK,
    check_values,
    define_whole,
    run_command,
)

flags.adopt_module_key_flags(recipe_flags)
flags.adopt_module_key_flags(clip_flags)

MOVING = (".gif", ".webp", ".apng", ".mp4")
SUFFIXES = (".png", ".npz", *MOVING)
"""Endings of `--out`; those that move are of clips."""

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "digits",
    "a workdir, .safetensors file, diffusers folder or bundled name",
)
LABELS = flags.DEFINE_list("labels", [], "classes, numbers or names, in rotation; default all")
PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "a text, or @FILE with one in each line; may be given again, in rotation"
)
NEGATIVE_PROMPT = flags.DEFINE_string("negative_prompt", None, "what to guide away from")
SIZE = flags.DEFINE_string("size", None, "HEIGHTxWIDTH like 512x768; default the checkpoint's")
LORA = flags.DEFINE_multi_string(
    "lora", [], "FILE or FILE:scale, merged into the weights; may be given again"
)
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"],
    "of weights and computation; default bfloat16 for published networks of latents on GPU and TPU",
)  # fmt: skip
NUM_SAMPLES = define_whole("num_samples", 40, "how many; with prompts one of each")
BATCH_SIZE = define_whole("batch_size", 64, "how many at a time; of latents 4")
SEED = define_whole("seed", 0, "of the whole set")
OUT = flags.DEFINE_string(
    "out",
    None,
    ".png contact sheet, .npz, of clips .gif, .webp, .apng or .mp4, or a folder; default "
    "samples/NAME-0001.png, ..., of clips .gif",
)
LIKE = flags.DEFINE_string(
    "like",
    None,
    "a PNG, NPZ, GIF or WebP of this command: draws it again; flags of the recipe change that",
)
TRAJECTORY = flags.DEFINE_string("trajectory", None, "also the clean estimates, as .gif or .png")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace existing files")
PARALLEL = flags.DEFINE_enum(
    "parallel", "jit", ["jit", "fsdp", "pmap"],
    "how devices share a batch; fsdp also splits the weights",
)  # fmt: skip
PROGRESS = flags.DEFINE_bool("progress", False, "a bar over network evaluations")


def run(argv: list[str]) -> None:
    """Draws what the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    start = time.perf_counter()
    from ddim_jax import command_line, parallel

    parallel.use_cpu_cores()
    logging.set_verbosity(logging.WARNING)
    parallel.use_compilation_cache()
    command_line.show_notes()
    try:
        check_values(run.__module__)
        if QUICK.value and PLAN.value is None:
            raise ValueError("--quick is for --plan, say for which devices, like --plan=v5e:4")
        parallel.join(DISTRIBUTED.value)
        if PLAN.value is not None:
            print(_plan())
        else:
            print(f"{_draw()}, {time.perf_counter() - start:.1f} s in all")
    except (ValueError, OSError) as error:
        own = (flag.name for flag in flags.FLAGS.get_key_flags_for_module(run.__module__))
        sys.exit(f"{command_line.called('sample.py')}: {command_line.with_flags(str(error), own)}")


def _draw() -> str:
    """Checks the flags, draws, writes; returns what was done."""
    import jax

    from ddim_jax import command_line, files, keys

    keys.check_seed(SEED.value, "--seed")
    trajectory, out = command_line.at_home([TRAJECTORY.value, OUT.value])
    if out == "":
        raise ValueError("--out is empty; give a .png or .npz file, or a folder, or leave it out")
    if out is not None and Path(out).name in SUFFIXES:
        raise ValueError(f"--out {out} has no name before its ending")
    if out is not None and not Path(out).suffix:
        return _draw_folder(Path(out))
    if jax.process_count() > 1:
        raise ValueError("several processes draw into a folder; say which by --out=FOLDER")
    overwrite = OVERWRITE.value
    if trajectory is not None:
        trajectory = files.check_new(
            trajectory, what="--trajectory", suffixes=(".gif", ".png"), overwrite=overwrite
        )
    if out is not None:
        out = files.check_new(out, what="--out", suffixes=SUFFIXES, overwrite=overwrite)
    else:
        files.check_folder("samples")
    files.check_apart(out=out, trajectory=trajectory)
    like = _like()
    model, recipe = _load(like)
    if out is not None and out.suffix in MOVING and not model.codec.frames:
        raise ValueError(f"--out {out} moves, and {model.name} draws pictures; give a .png or .npz")
    drawing, about = _generate(model, recipe, like, out, trajectory is not None)
    suffix = ".gif" if drawing.pictures.ndim == 5 else ".png"
    out = out or files.next_free(Path("samples"), model.name, suffix)
    _write(drawing, out, trajectory, about, model, alone=like is not None and like.alone)
    count = len(drawing.pictures)
    known = (like.clips if like is not None else clip_flags.said()) or {}
    how = _how(model, recipe, drawing.nfe, known.get("known_by") == "repaint")
    return f"{out}: {count} samples, {how}\n" + _times(count, drawing)


def _labels() -> list[str]:
    """`--labels`, none of them empty."""
    if LABELS.value and not all(label.strip() for label in LABELS.value):
        raise ValueError(f"--labels must be like 3,1,4, got {','.join(LABELS.value)!r}")
    return LABELS.value


def _like():
    """What `--like` says, checked; None without it."""
    from ddim_jax import command_line, provenance

    if LIKE.value is None:
        return None
    of_files = (clip_flags.FIRST_FRAME, clip_flags.FROM_CLIP, clip_flags.RESIZE)
    of_clips = (clip_flags.FRAMES, clip_flags.EXTEND, clip_flags.OVERLAP, clip_flags.INTERPOLATE)
    for flag in (
        *(NUM_SAMPLES, LABELS, PROMPT, NEGATIVE_PROMPT, SIZE, SEED),
        *(*of_files, *of_clips, clip_flags.KNOWN_BY, clip_flags.FRAME_RATE),
        *(() if PLAN.value else (BATCH_SIZE,)),  # of a plan it changes no picture
    ):
        if not flags.FLAGS[flag.name].using_default_value:
            raise ValueError(f"--like draws the pictures of a file and takes no --{flag.name}")
    return provenance.read(command_line.at_home(LIKE.value))


def _generate(model, recipe, like, out: Path | None, trajectory: bool):
    """The drawing, and what its files are to hold; first whether clips can be written to them."""
    import numpy as np

    from ddim_jax import command_line, provenance
    from ddim_jax.data.clip_writers import check_writable

    prompts, known = None if like else _prompts(model), clip_flags.asked(model, like)
    if model.codec.frames and (out is None or out.suffix in MOVING):
        check_writable(out or Path("clips.gif"), clip_flags.shown_rate(model, known))
    negative_prompt = command_line.negative_prompt(NEGATIVE_PROMPT.value)
    count, seed, batch_size = _count(prompts, known), SEED.value, _batch_size(model)
    prompts = prompts and prompts[:count]
    asked = {"label": _labels(), "prompt": prompts, "negative_prompt": negative_prompt}
    if like is not None:
        count, seed, batch_size = len(like.index), like.seed, like.batch_size
        prompts, negative_prompt = like.prompts, like.negative_prompt
        asked = like.padded()
    drawing = model.generate(
        len(asked["index"]) if "index" in asked else count,
        recipe,
        **asked,
        seed=seed,
        batch_size=batch_size,
        trajectory=trajectory,
        progress=PROGRESS.value,
        parallel=PARALLEL.value,
        **known,
    ).first(count)
    places = np.arange(count) if like is None else like.index
    about = provenance.about(
        model, recipe, seed=seed, index=places, labels=drawing.labels, checkpoint=_checkpoint(like),
        batch_size=batch_size, prompts=prompts, negative_prompt=negative_prompt,
        clips=clip_flags.about(known, like),
    )  # fmt: skip
    return drawing, about


def _prompts(model) -> list[str] | None:
    """The texts of `--prompt`, files by their lines; None if there are none."""
    from ddim_jax import command_line

    texts = command_line.prompts(PROMPT.value)
    if texts or not model.inputs.takes("text"):
        return texts or None
    raise ValueError(f"{model.name} draws from a text: give --prompt; --prompt= for none")


def _count(prompts: list[str] | None, known: dict) -> int:
    """`--num_samples`; by default one of each prompt, given picture and clip, if there are some.

    Where it is fewer than those, or than the labels, it says what is left out.
    """
    given = {name: known[name] for name in ("first_frame", "from_clip") if name in known}
    given = {"prompt": prompts or []} | given
    each = max(map(len, given.values()))
    if each and flags.FLAGS["num_samples"].using_default_value:
        return each
    count = NUM_SAMPLES.value
    for name, some in (given | {"labels": LABELS.value}).items():
        if 0 < count < len(some):
            left = len(some) - count
            said = (
                f"--num_samples={count} is fewer than the {len(some)} of --{name}: {left} left out"
            )
            print(f"note: {said}", file=sys.stderr)
    return count


def _batch_size(model) -> int:
    """`--batch_size`; fewer latents than pictures of pixels, which are small."""
    from ddim_jax import command_line

    own = flags.FLAGS["batch_size"].using_default_value
    return command_line.batch_size(None if own else BATCH_SIZE.value, model)


def _draw_folder(folder: Path) -> str:
    """Draws this process's samples of a large set; returns what was done."""
    from ddim_jax import command_line, files, sample_folder
    from ddim_jax.recipe import ADAPTIVE

    if LIKE.value is not None:
        raise ValueError(f"--out={folder} is a folder; --like draws one file, like a .png")
    if TRAJECTORY.value is not None or OVERWRITE.value:
        raise ValueError(f"--out={folder} is a folder: it takes no --trajectory and no --overwrite")
    if known := clip_flags.said():
        raise ValueError(
            f"--out={folder} is a folder, of clips that are drawn at once from noise, and takes no "
            f"--{next(iter(known))}; use --out=NAME.npz or NAME.gif"
        )
    files.check_folder(folder, f"--out {folder}")
    if not (folder / sample_folder.ABOUT).exists():
        files.check_origin(folder / sample_folder.ABOUT, {}, "samples")
    model, recipe = _load()
    if recipe.solver == ADAPTIVE:
        raise ValueError("--solver=adaptive does not draw into a folder; use --out=NAME.npz")
    prompts = _prompts(model)
    report = sample_folder.draw(
        folder,
        model,
        recipe,
        num_samples=_count(prompts, {}),
        label=_labels(),
        prompt=prompts,
        negative_prompt=command_line.negative_prompt(NEGATIVE_PROMPT.value),
        batch_size=_batch_size(model),
        seed=SEED.value,
        parallel=PARALLEL.value,
        checkpoint=CHECKPOINT.value,
    )
    existing = f" ({report.existing} more were there)" if report.existing else ""
    return f"{folder}: {report.drawn} samples{existing}, {_how(model, recipe)}\n" + _times(
        report.drawn, report
    )


def _how(model, recipe, nfe=None, repaint: bool = False) -> str:
    """The recipe in words, with the evaluations that others than a table's own were.

    They are of an adaptive solver, of many windows, or of known frames by `repaint`, whose table is
    its own.
    """
    from ddim_jax.recipe import ADAPTIVE

    table = recipe.table(model.schedule)
    text = recipe.describe(table)
    if recipe.solver == ADAPTIVE and nfe is not None:
        text += f", NFE {nfe.min()}..{nfe.max()} (mean {nfe.mean():.0f})"
    elif repaint:
        text = f"repaint, {recipe.stride_name} stride, {nfe[0]} NFE"
    elif nfe is not None and nfe[0] != table.nfe:
        text += f" in each window, {nfe[0]} in all"
    return text + " x 2 forward passes (guided)" * (model.passes(recipe) == 2)


def _times(count: int, report) -> str:
    rate = f", {count / report.seconds:.1f} images/s" if report.seconds else ""
    return f"compiled in {report.compile_seconds:.1f} s, sampled in {report.seconds:.2f} s{rate}"


def _plan() -> str:
    """What drawing a batch needs on devices that may not be here."""
    from ddim_jax import planning

    like = _like()
    if not flags.FLAGS["num_samples"].using_default_value:
        raise ValueError("--plan is of one batch and takes no --num_samples; set --batch_size")
    known = (like.clips if like is not None else clip_flags.said()) or {}
    if without := [*known, *(["trajectory"] if TRAJECTORY.value else [])]:
        raise ValueError(
            "--plan is of a batch that is drawn at once from noise, without its trajectory, and "
            f"takes no --{without[0]}"
            + (f"; {LIKE.value} was drawn with it" if like and known else "")
        )
    model, recipe = _load(like)
    print(f"compiling for {PLAN.value}, which may take minutes ...")
    own = like is not None and flags.FLAGS["batch_size"].using_default_value
    batch_size = like.batch_size if own else _batch_size(model)
    plan = planning.plan_sampling(
        model,
        recipe,
        PLAN.value,
        batch_size=batch_size,
        mode=PARALLEL.value,
        quick=QUICK.value,
    )
    text = planning.report(plan, f"Drawing {batch_size} samples, {_how(model, recipe)},")
    text += "\n  " * bool(beside := planning.apart(model)) + beside
    if not plan.fits:
        print(text)
        split = "" if PARALLEL.value == "fsdp" else ", --parallel=fsdp"
        raise ValueError(f"it does not fit; take a smaller --batch_size{split} or more devices")
    return text


def _load(like=None):
    """The model and recipe that the flags, or a picture to be drawn again, name, checked."""
    from ddim_jax import checkpoints, command_line

    lora, dtype = tuple(LORA.value), DTYPE.value
    if like is not None:
        lora, dtype = lora or like.lora_files(), dtype or like.dtype
    model = checkpoints.load(
        _checkpoint(like),
        dtype=dtype,
        lora=lora,
        accelerated=True if PLAN.value else None,
    )
    shape = (command_line.size(SIZE.value), clip_flags.FRAMES.value)
    model = model.sized(*(shape if like is None else (like.size, like.frames)))
    if like is not None:
        model = model.replace(recipe=like.recipe)
    recipe = recipe_flags.recipe(model.recipe)
    model.check(recipe)
    if like is not None:
        like.check(model, recipe)
    for note in model.notes(recipe):
        print(f"note: {note}", file=sys.stderr)
    if recipe.stride and recipe.stride.endswith(".json"):
        _note_differences(model, recipe)
    return model, recipe


def _checkpoint(like) -> str:
    """`--checkpoint`; by default what drew the picture of `--like`."""
    own = flags.FLAGS["checkpoint"].using_default_value
    return like.checkpoint if like is not None and own else CHECKPOINT.value


def _note_differences(model, recipe) -> None:
    """Says in what a learned stride was learned for something else."""
    from ddim_jax.strides import learned

    differences = learned.load(recipe.stride).differences(
        solver=recipe.solver, guidance=recipe.guidance_scale, weights=model.fingerprint
    )
    for difference in differences:
        print(f"note: {recipe.stride}: {difference}", file=sys.stderr)


def arrays(drawing, about: dict, class_names: tuple[str, ...], frame_rate: float = 0.0) -> dict:
    """What an npz file of samples holds: what `data.load` reads, and what drew them."""
    import json

    from ddim_jax import provenance
    from ddim_jax.data import npz

    held = npz.arrays(drawing.pictures, drawing.labels, class_names, about["prompts"], frame_rate)
    return held | {provenance.NPZ: json.dumps(about)}


def _write(
    drawing, out: Path, trajectory: Path | None, about: dict, model, alone: bool = False
) -> None:
    """Writes the files; `alone`: a PNG holds the one sample as a folder of samples has it."""
    import numpy as np

    from ddim_jax import data, files, sample_folder

    overwrite, rate = OVERWRITE.value, clip_flags.shown_rate(model, about["clips"])
    titles = model.inputs.titles(drawing.labels)
    if out.suffix == ".npz":
        known = clip_flags.known_rate(model, about["clips"])
        held = arrays(drawing, about, model.inputs.class_names, known)
        files.save(out, lambda file: np.savez(file, **held))
    elif out.suffix == ".png" and alone:
        out.parent.mkdir(parents=True, exist_ok=True)
        sample_folder.write(out, drawing.pictures[0], about, rate)
    elif out.suffix in MOVING:
        data.save_clips(out, drawing.pictures, rate, titles, overwrite=overwrite, about=about)
    else:
        data.save_grid(out, drawing.pictures, titles, overwrite=overwrite, about=about)
    if trajectory is None:
        return
    frames = drawing.trajectory
    if trajectory.suffix == ".gif":
        sheets = [data.grid(frame) for frame in frames]
        data.save_gif(trajectory, [*sheets, *sheets[-1:] * 10], 100, overwrite=overwrite)
    else:  # rows: samples, columns: network evaluations
        shown = np.unique(np.linspace(0, len(frames) - 1, min(12, len(frames))).round().astype(int))
        if model.codec.frames:  # of clips the frame in the middle
            frames = frames[:, :, model.codec.frames // 2]
        tiles = frames[shown, :8].swapaxes(0, 1).reshape(-1, *frames.shape[2:])
        numbers = [k + 1 for k in shown]
        columns = len(shown)
        data.save_grid(
            trajectory, tiles, numbers, columns=columns, overwrite=overwrite, about=about
        )


def main(argv: list[str] | None = None) -> None:
    """The command line; of this process by default."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    run_command(run.__module__, run, ["sample.py", *argv] if argv else sys.argv)


if __name__ == "__main__":
    main()
