"""The command `inpaint` on models of latents: a mask of cells, and the known pixels put back.

A cell of the latents is known where all pixels that it stands for are. The ways:

    levels        of whole frames of clips: known ones are put in, and the network is told that
                  they are clean
    repaint       draws with jumps back; known cells are noised afresh at every level
    replacement   draws by any solver; known cells are noised at every level by one noise, the one
                  that the drawing starts from (blended latents)
    network       of networks made for it: told the mask and the latents of what is known

Their start may be the noised picture (`--strength`), as of SDEdit. Known cells come out of the
decoder changed a little, and so known pixels are put back at the end.

Sources: Lugmayr et al. 2022 (arXiv:2201.09865); Avrahami et al. 2023 (arXiv:2206.02779, blended
latents); Rombach et al. 2022 (arXiv:2112.10752), section 4.5 (networks).
"""

import argparse

import numpy as np

from ddim_jax.clip_drawing import knows_levels
from ddim_jax.codecs import to_unit_range
from ddim_jax.editing import pictures, restoration
from ddim_jax.editing.actions import make_editor, own_recipe, start_noise, table_recipe, told
from ddim_jax.editing.editor import squared_error
from ddim_jax.editing.frames import KnownFrames, known_frames
from ddim_jax.editing.judging import judge
from ddim_jax.editing.restoration import Known
from ddim_jax.editing.sdedit import sdedit_table
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe
from ddim_jax.solvers import SolverTable

Array = np.ndarray


def inpaint_latents(model: Model, args: argparse.Namespace) -> None:
    """Completes pictures by a model of latents."""
    method = _method(model, args)
    check_of_repaint(args, method)
    originals, labels, texts = pictures.read_pictures(model, args)
    mask = pictures.read_mask(args, originals.shape)
    codec, editor = model.codec, make_editor(model, args, own=True)
    y, cells = np.asarray(codec.encode(codec.params, originals, None)), known_cells(model, mask)
    given = {"seed": args.seed, **told(editor, args, texts)}
    if method == "network":
        given["channels"] = further_channels(model, originals, mask)
    noise = start_noise(model, args, np.arange(len(y)))
    if method == "repaint":
        recipe = table_recipe(args, "ddim")
        table, x = repaint_table(model, args, recipe), noise
    else:
        table, x = start(model, own_recipe(model, args), args.strength, y, noise)
    if method == "levels":
        known = KnownFrames(y, mask[:, :, 0, 0, 0] > 0)
        given |= {"task": known_frames(model.schedule), "known": known}
    elif method != "network":
        one_noise = method == "replacement" or model.frame_noise is not None
        kept = noise if one_noise else None
        given |= {"task": restoration.replacement(), "known": Known(y, cells, kept)}
    drawn = editor.draw(table, x, labels, **given)
    if method != "network":
        drawn = cells * y + (1 - cells) * drawn  # the last level may not be quite clean
    decoded = model.pictures(drawn)
    restored = decoded if args.no_paste else np.where(mask == 1, originals, decoded)
    changed = np.abs(np.int32(restored) - originals) * mask / 255
    unit = [to_unit_range(array) for array in (originals, restored)]
    numbers = {
        "method": method,
        "evaluations": table.nfe,
        "known_error": float(changed.max()),
        "mean_squared_error": float(squared_error(*unit).mean()),
    }
    known = np.where(mask == 1, originals, np.uint8(0))
    rows = {"image": originals, "known": known, "restored": restored}
    asked = pictures.Asked.of(model.inputs, len(y), labels, texts)
    pictures.write(model, args, rows, numbers | judge(model, rows, asked), asked=asked)


def check_of_repaint(args: argparse.Namespace, method: str) -> None:
    """Raises ValueError for flags of RePaint beside another method, and of others beside it."""
    if method == "repaint" and args.solver is not None:
        raise ValueError("--method=repaint is a solver itself and takes no --solver")
    for flag in ("jump_length", "resamplings"):
        if method != "repaint" and getattr(args, flag) is not None:
            raise ValueError(f"--{flag} is of --method=repaint, got --method={method}")


def repaint_table(model: Model, args: argparse.Namespace, recipe: Recipe) -> SolverTable:
    """RePaint's by `--jump_length` and `--resamplings`, on the stride of a recipe.

    Raises:
        ValueError: jumps as long as all the steps, which would be none.
    """
    times = recipe.bare_times(model.schedule, "repaint")
    steps = len(times) - 1
    jump = args.jump_length or max(1, steps // 25)
    if args.jump_length is not None and jump >= steps:
        raise ValueError(
            f"--jump_length must be below the {steps} --steps, got {args.jump_length}; a "
            "25th of them is usual"
        )
    return restoration.repaint(model.schedule, times, jump, args.resamplings or 5)


def known_cells(model: Model, mask: Array) -> Array:
    """[N, h, w, 1] from pixels [N, H, W, 1]: 1 where all pixels of a cell are known."""
    *which, height, width, _ = mask.shape  # pictures, of clips frames too
    h, w = model.sample_shape[-3:-1]
    blocks = mask.reshape(*which, h, height // h, w, width // w, 1)
    return np.float32(blocks.mean(axis=(-4, -2)) == 1)


def further_channels(model: Model, originals: Array, mask: Array) -> Array:
    """[N, h, w, 1 + C], what a network made for inpainting is told: what to draw, what is known.

    Args:
        model: whose codec encodes.
        originals: uint8 [N, H, W, C].
        mask: [N, H, W, 1], 1 where they are known.
    """
    kept = np.float32(to_unit_range(originals) * mask)  # grey where it is not known
    encoded = np.asarray(model.codec.encode(model.codec.params, kept, None))
    return np.concatenate([1 - known_cells(model, mask), encoded], axis=-1)


def start(
    model: Model, recipe: Recipe, strength: float, y: Array, noise: Array
) -> tuple[SolverTable, Array]:
    """The table of a share of a recipe's steps, and the noised picture that it starts from."""
    if strength == 1:
        return recipe.table(model.schedule), noise
    table = sdedit_table(model.schedule, recipe, strength)
    x = np.float32(table.start[0] * y + table.start[1] * noise)
    return table._replace(start=np.array([1.0, 0.0])), x


def _method(model: Model, args: argparse.Namespace) -> str:
    """`--method`, checked with what goes with it."""
    channels = model.inputs.channels
    kind = (model.config.get("extra") or {}).get("kind")
    if channels and kind != "inpaint":
        raise ValueError(
            f"{model.name} takes {channels} further channels of kind {kind!r}, which inpaint has "
            "not; use a network of 9 channels in all, or one without further ones"
        )
    levels = pictures.of_frames(args) and knows_levels(model)
    usual = "network" if channels else "levels" if levels else "repaint"
    method = args.restoration or usual
    ways = ("network",) if channels else ("repaint", "replacement", *["levels"] * levels)
    if method not in ways:
        why = "was made for inpainting" if channels else "draws latents"
        raise ValueError(f"{model.name} {why}: use --method={' or '.join(ways)}, got {method}")
    if args.operator != "mask":
        raise ValueError(
            f"--operator={args.operator} measures pixels, and {model.name} draws latents; use "
            "--operator=mask, or a model of pixels"
        )
    if args.strength != 1 and method == "repaint":
        raise ValueError("--method=repaint starts from noise; use --method=replacement")
    return method
