"""The pictures that a run leaves: the same samples at every call, from the moving average.

Of networks that are told texts those of `config.sample.prompts`, by default of the first captions;
of autoencoders pictures of the data, spread evenly, each above what comes back of it.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from ddim_jax import data, files, provenance
from ddim_jax.batch_loop import NotFiniteSamples
from ddim_jax.codecs import to_uint8, to_unit_range
from ddim_jax.model import Model
from ddim_jax.names import check_range

BATCH = 64
"""Samples at a time."""


def grid(model: Model, source: Any, folder: Path) -> "SampleGrid | Reconstructions":
    """What draws a run's pictures: `(parameters, step) -> path` or None.

    Args:
        model: of the run.
        source: its data.
        folder: where the PNG files go.
    """
    if model.config.loss.name == "autoencoder":
        return Reconstructions(model, source, folder)
    return SampleGrid(model, folder, source)


class Reconstructions:
    """Writes a contact sheet of pictures and what an autoencoder makes of them."""

    def __init__(self, model: Model, source: Any, folder: Path):
        """Arguments as of `grid`; reads the pictures."""
        count = min(_count(model.config), len(source))
        places = np.linspace(0, len(source) - 1, count).astype(int)
        self._folder, self._pictures = folder, np.stack([source[int(i)]["image"] for i in places])
        empty = np.zeros(len(self._pictures), np.float32)

        def run(params, pictures):
            return to_uint8(model.apply(params, to_unit_range(pictures), empty, {}).pictures)

        self._run = jax.jit(run)

    def __call__(self, ema: Any, step: int) -> Path | None:
        """Writes the sheet and returns its path; None in processes but the first."""
        path = self._folder / f"step_{step:07d}.png"
        if jax.process_index() != 0:
            return None
        columns = min(10, len(self._pictures))
        again = np.asarray(self._run(ema, self._pictures))
        rows = range(0, len(again), columns)
        sheet = [part[i : i + columns] for i in rows for part in (self._pictures, again)]
        missing = -len(again) % columns  # both rows of a pair are full
        if missing:
            blank = np.full((missing, *again.shape[1:]), 255, np.uint8)
            sheet[-2:] = [np.concatenate([part, blank]) for part in sheet[-2:]]
        with files.naming(path):
            data.save_grid(path, np.concatenate(sheet), columns=columns, overwrite=True)
        return path


class SampleGrid:
    """Draws a contact sheet as the config's section `sample` says; compiles once."""

    def __init__(self, model: Model, folder: Path, source: Any = None):
        """Compiles nothing yet.

        Args:
            model: of the run; its parameters come with every call.
            folder: where the PNG files go.
            source: whose captions are prompts where the config has none.
        """
        self._folder, config = folder, model.config
        self._model, self._generator = model, model.generator()
        self._count, self._seed = _count(config), config.seed
        self._table = self.check(model)
        labels = model.inputs.labels(None, self._count)
        self._labels = labels
        self._prompts = None
        if model.inputs.takes("text"):
            captions = dict.fromkeys(getattr(source, "captions", ()))
            prompts = list(config.sample.get("prompts") or captions) or [""]
            self._prompts = [prompts[i % len(prompts)] for i in range(self._count)]
        self._conditions = model.conditions(
            self._count, model.recipe, labels, self._table, prompt=self._prompts
        )

    @staticmethod
    def check(model: Model):
        """The table of the model's recipe; raises ValueError if the model cannot use it."""
        count, hint = _count(model.config), "for none set config.train.sample_every=0"
        check_range("config.sample.num_samples", count, "[1, 100000]", hint, whole=True)
        rate, hint = model.config.sample.get("frame_rate") or 0, "0 or None: that of the clips"
        check_range("config.sample.frame_rate", rate, "[0, 1000]", hint)
        scale, inputs = model.recipe.guidance_scale, model.inputs
        _check_prompts(model.config.sample.get("prompts"), inputs.takes("text"))
        if scale != 1 and not (inputs.null or inputs.takes("guidance")):
            raise ValueError(
                f"config.sample.guidance_scale={scale} needs a class-conditional network; leave it "
                "out, or set config.model.num_classes"
            )
        if inputs.takes("guidance"):
            model.check(model.recipe)
        table = model.recipe.table(model.schedule)
        if not inputs.takes("text"):
            model.conditions(1, model.recipe, inputs.labels(None, 1), table)
        return table

    def __call__(self, ema: Any, step: int) -> Path | None:
        """Draws with these parameters and returns the picture's path.

        None in processes but the first, and where the samples are not finite, which is said:
        training goes on.
        """
        path = self._folder / f"step_{step:07d}.png"
        if jax.process_index() != 0:
            return None
        self._generator.params = ema
        index = np.arange(self._count)
        try:
            batches = self._generator.batches(
                self._table, index, seed=self._seed, batch_size=BATCH, **self._conditions
            )
            pictures = np.concatenate([self._model.pictures(batch.result.x) for batch in batches])
            columns = None
            if pictures.ndim == 5:  # a row for each clip
                columns, pictures = pictures.shape[1], pictures.reshape(-1, *pictures.shape[2:])
        except NotFiniteSamples as error:
            tqdm.write(f"step {step}: no picture, {error}", file=sys.stderr)
            return None
        finally:
            self._generator.params = None  # no whole copy on each device while training goes on
        with files.naming(path):
            about = self._about(ema, step)
            data.save_grid(path, pictures, columns=columns, overwrite=True, about=about)
        return path

    def _about(self, ema: Any, step: int) -> dict[str, Any]:
        """What drew the picture, for its file."""
        workdir = self._folder.parent
        return provenance.about(
            self._model.replace(params=ema, step=step, name=workdir.name),
            self._model.recipe,
            seed=self._seed,
            index=np.arange(self._count),
            labels=self._labels,
            prompts=self._prompts,
            batch_size=BATCH,
            checkpoint=workdir,
        )


def _check_prompts(prompts: Any, told: bool) -> None:
    """Raises ValueError unless they are texts, of a network that is told texts."""
    if not prompts and isinstance(prompts, (tuple, list, type(None))):
        return
    if not isinstance(prompts, (tuple, list)) or not all(isinstance(one, str) for one in prompts):
        raise ValueError(f"config.sample.prompts must be a list of texts, got {prompts!r}")
    if not told:
        raise ValueError(
            f"config.sample.prompts={prompts!r} are for networks that are told texts; drop them"
        )


def _count(config: ml_collections.ConfigDict) -> int:
    """How many pictures a grid has, 40 unless the config says."""
    return config.sample.get("num_samples", 40)
