"""A page that draws, inverts, completes and interpolates, by Gradio, on this machine alone.

    python -m ddim_jax.demo --checkpoint=digits --checkpoint=digits_4step --port=7860

It is made for trying models out; `python -m ddim_jax.serve` is made for programs and for many
clients. `Studio` is what the page does, without the page.
"""

import argparse
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ddim_jax import command_line, keys
from ddim_jax.codecs import to_uint8
from ddim_jax.data.images import fit, to_pil
from ddim_jax.editing import latents, restoration
from ddim_jax.editing.editor import Editor
from ddim_jax.editing.inversion import round_trip
from ddim_jax.model import Model
from ddim_jax.names import check_range, whole_number
from ddim_jax.solvers import SOLVERS

MOST_STEPS, MOST_PICTURES = 250, 40
RESAMPLINGS = 5


class Studio:
    """The edits of the page, of any of its models; pictures are uint8 [H, W, C].

    Args:
        models: by name.
    """

    def __init__(self, models: Mapping[str, Model]):
        self.models = dict(models)
        self._editor = functools.cache(lambda name: Editor(self.models[name], show_progress=False))

    def draw(
        self, name: str, label: str, prompt: str, solver: str, steps: int, guidance: float,
        seed: int, num: int,
    ) -> list[np.ndarray]:  # fmt: skip
        """Draws; label "" for all in turn."""
        num = check_range("pictures", num, f"[1, {MOST_PICTURES}]", whole=True)
        told = {"prompt": prompt} if self.models[name].inputs.takes("text") else {}
        steps = check_range("steps", steps, f"[1, {MOST_STEPS}]", whole=True)
        return list(self.models[name].draw(
            num, label=label or None, solver=solver, steps=steps, guidance_scale=guidance,
            seed=whole_number(seed), **told,
        ))  # fmt: skip

    def invert(
        self, name: str, picture: Any, label: str, prompt: str, steps: int
    ) -> tuple[list[np.ndarray], str]:
        """The picture, its noise, the picture drawn from that; and how far this is from it."""
        model, editor = self.models[name], self._editor(name)
        trip = round_trip(model.schedule, "fixed_point", steps)
        x = self._sample(model, picture)
        given = self._told(model, label, prompt)
        found = editor.invert(trip, x, **given)
        again = model.pictures(editor.draw(trip.down, found.state, **given))[0]
        before, noise = model.pictures(x)[0], found.state.evaluate
        error = float(np.mean((again / 255 - before / 255.0) ** 2))
        said = (
            f"{trip.up.nfe} evaluations to the noise and {trip.down.nfe} back; mean squared error "
            f"{error:.2g}, standard deviation of the noise {noise.std():.2f}"
        )
        return [before, to_uint8(noise[0, ..., :3] / 3), again], said

    def inpaint(
        self, name: str, picture: Any, unknown: np.ndarray, label: str, steps: int, seed: int
    ) -> list[np.ndarray]:
        """The picture without its unknown part, and completed by RePaint.

        Args:
            name: of the model, which works on pixels.
            picture: uint8 [H, W, C].
            unknown: bool [H, W].
            label: its class; "" for none.
            steps: of the stride.
            seed: of all noise.

        Raises:
            ValueError: a model of latents, or nothing to complete.
        """
        model, editor = self.models[name], self._editor(name)
        if model.draws_latents:
            raise ValueError(
                f"{name} draws latents: python -m ddim_jax edit inpaint completes them"
            )
        if not np.any(unknown):
            raise ValueError("paint over what is to be completed")
        x = self._sample(model, picture)
        size = tuple(x.shape[1:3])
        mask = fit(np.uint8(255 * ~unknown)[..., None], size, 1)[None] > 127
        mask = mask.astype(np.float32)
        recipe = model.recipe.replace(solver="ddim", stride="uniform", steps=steps)
        jump = max(1, steps // 25)
        times = recipe.times(model.schedule)
        table = restoration.repaint(model.schedule, times, jump, RESAMPLINGS)
        known = restoration.Known(mask * x, mask)
        given = self._told(model, label, "") | {"seed": keys.check_seed(whole_number(seed))}
        task = _replacement()
        drawn = editor.draw(table, None, task=task, known=known, **given)
        shown = np.where(mask > 0, x, -1).astype(np.float32)
        return [model.pictures(shown)[0], model.pictures(drawn)[0]]

    def interpolate(
        self, name: str, label: str, prompt: str, first: int, second: int, frames: int, steps: int
    ) -> list[np.ndarray]:
        """A walk from the picture of one seed to that of another, along a great circle."""
        model, editor = self.models[name], self._editor(name)
        frames = check_range("frames", frames, f"[2, {MOST_PICTURES}]", whole=True)
        ends = []
        for seed in (first, second):
            of_sample = keys.sample_keys(keys.check_seed(whole_number(seed)), np.arange(1))
            ends.append(np.asarray(keys.initial_noise(of_sample, model.sample_shape))[0])
        path = np.asarray(latents.chain(np.stack(ends), frames - 1))
        table = round_trip(model.schedule, "reverse", steps).down
        return list(model.pictures(editor.draw(table, path, **self._told(model, label, prompt))))

    def _sample(self, model: Model, picture: Any) -> np.ndarray:
        if picture is None:
            raise ValueError("give a picture first")
        height, width, channels = model.codec.picture_shape
        picture = np.asarray(picture)
        picture = picture[..., None] if picture.ndim == 2 else picture
        picture = fit(picture, (height, width), channels)[None]
        return np.asarray(model.codec.encode(model.codec.params, picture, None), np.float32)

    def _told(self, model: Model, label: str, prompt: str) -> dict[str, Any]:
        told = {"labels": label} if label and model.inputs.num_classes else {}
        return told | ({"prompt": prompt} if model.inputs.takes("text") else {})


@functools.cache
def _replacement() -> Any:
    """One task for all calls, so that it is compiled once."""
    return restoration.replacement()


def enlarged(pictures: Sequence[np.ndarray], least: int = 140) -> list[Image.Image]:
    """Pictures as Pillow has them, small ones by a whole number of screen pixels a pixel."""
    found = [to_pil(picture) for picture in pictures]
    scale = max(1, least // found[0].height)
    size = (scale * found[0].width, scale * found[0].height)
    return [image.resize(size, Image.Resampling.NEAREST) for image in found]


def page(studio: Studio) -> Any:
    """The Gradio page of a studio."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    def shown(work: Callable) -> Callable:
        """The same with pictures as the page takes them, and bad input said in it."""

        @functools.wraps(work)
        def run(*args):
            try:
                found = work(*args)
            except ValueError as error:
                raise gr.Error(str(error), print_exception=False) from error
            if isinstance(found, tuple):
                return enlarged(found[0]), *found[1:]
            return enlarged(found)

        return run

    first = next(iter(studio.models.values()))

    def steps(value: int) -> Any:
        return gr.Slider(1, MOST_STEPS, value, step=1, label="steps")

    def seed(value: int, label: str = "seed") -> Any:
        return gr.Number(value, precision=0, minimum=0, label=label)

    def gallery() -> Any:
        return gr.Gallery(label="pictures", columns=5, object_fit="contain", format="png")

    def inpaint(name, edited, label, steps, seed):
        if edited is None or edited.get("background") is None:
            raise ValueError("give a picture first")
        layers = [np.asarray(layer)[..., 3] > 0 for layer in edited["layers"]]
        unknown = np.any(layers, axis=0) if layers else np.zeros((1, 1), bool)
        return studio.inpaint(name, edited["background"], unknown, label, int(steps), seed)

    with gr.Blocks(title="ddim_jax", analytics_enabled=False) as made:
        gr.Markdown("# ddim_jax")
        with gr.Row():
            name = gr.Dropdown(list(studio.models), label="model")
            label = gr.Textbox(label="class", info="number or name; empty: all in turn, or none")
            prompt = gr.Textbox(label="text", info="of a model that is told one")
        with gr.Tab("Draw"):
            with gr.Row():
                solver = gr.Dropdown(list(SOLVERS), value=first.recipe.solver, label="solver")
                own = steps(len(first.recipe.times(first.schedule)) - 1)
                guidance = gr.Number(first.recipe.guidance_scale, label="guidance")
                of_set, num = seed(0), gr.Slider(1, MOST_PICTURES, 10, step=1, label="pictures")
            given = [name, label, prompt, solver, own, guidance, of_set, num]
            gr.Button("Draw").click(shown(studio.draw), given, gallery(), api_name="draw")
        with gr.Tab("Invert"):
            picture, count = gr.Image(label="picture"), steps(20)
            out, said = gallery(), gr.Markdown()
            given = [name, picture, label, prompt, count]
            gr.Button("Invert").click(shown(studio.invert), given, [out, said], api_name="invert")
        with gr.Tab("Complete"):
            brush = gr.ImageEditor(label="paint over what is to be completed", type="numpy")
            count, of_noise, out = steps(50), seed(0), gallery()
            given = [name, brush, label, count, of_noise]
            gr.Button("Complete").click(shown(inpaint), given, out, api_name="complete")
        with gr.Tab("Interpolate"):
            with gr.Row():
                ends = [seed(3, "from seed"), seed(14, "to seed")]
                frames, count = gr.Slider(2, MOST_PICTURES, 10, step=1, label="frames"), steps(20)
            given, out = [name, label, prompt, *ends, frames, count], gallery()
            work = shown(studio.interpolate)
            gr.Button("Interpolate").click(work, given, out, api_name="interpolate")
    return made


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the flags."""
    parser = command_line.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", action="append", help="may be given again; default digits and digits_4step"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for all networks")
    parser.add_argument("--port", type=int, default=7860)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Loads and shows the page until it is interrupted."""
    from ddim_jax import checkpoints

    check_range("--port", args.port, "[1, 65535]", whole=True)
    command_line.bound(args.host, args.port).close()
    if ":" in args.host:
        raise ValueError(f"--host={args.host}: the demo takes names and addresses of IPv4")
    models = {}
    for checkpoint in args.checkpoint or ["digits", "digits_4step"]:
        model = checkpoints.load(checkpoint)
        if model.codec.frames:
            raise ValueError(f"{model.name} draws clips, which the demo does not; use sample.py")
        if model.name in models:
            raise ValueError(
                f"two checkpoints are called {model.name!r}; copy one, or show them one by one"
            )
        models[model.name] = model
    try:
        made = page(Studio(models))
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'ddim_jax[demo]'") from None
    made.queue(default_concurrency_limit=1, max_size=32)
    print(command_line.address(args.host, args.port), flush=True)
    made.launch(server_name=args.host, server_port=args.port, share=False, quiet=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Shows the page from the command line."""
    args = parse(argv)
    command_line.run("demo", lambda: run(args))


if __name__ == "__main__":
    main()
