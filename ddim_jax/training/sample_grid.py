"""The pictures that a run leaves: the same samples at every call, from the moving average."""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ddim_jax import data, files, provenance
from ddim_jax.batch_loop import NotFiniteSamples
from ddim_jax.model import Model
from ddim_jax.names import check_range

BATCH = 64
"""Samples at a time."""


class SampleGrid:
    """Draws a contact sheet as the config's section `sample` says; compiles once."""

    def __init__(self, model: Model, folder: Path):
        """Compiles nothing yet.

        Args:
            model: of the run; its parameters come with every call.
            folder: where the PNG files go.
        """
        self._folder, config = folder, model.config
        self._model, self._generator = model, model.generator()
        self._count, self._seed = config.sample.num_samples, config.seed
        self._table = self.check(model)
        labels = model.inputs.labels(None, self._count)
        self._labels = labels
        self._conditions = model.conditions(self._count, model.recipe, labels, self._table)

    @staticmethod
    def check(model: Model):
        """The table of the model's recipe; raises ValueError if the model cannot use it."""
        count, hint = model.config.sample.num_samples, "for none set config.train.sample_every=0"
        check_range("config.sample.num_samples", count, "[1, 100000]", hint, whole=True)
        scale, inputs = model.recipe.guidance_scale, model.inputs
        if scale != 1 and not (inputs.null or inputs.takes("guidance")):
            raise ValueError(
                f"config.sample.guidance_scale={scale} needs a class-conditional network; leave it "
                "out, or set config.model.num_classes"
            )
        if inputs.takes("guidance"):
            model.check(model.recipe)
        table = model.recipe.table(model.schedule)
        model.conditions(1, model.recipe, model.inputs.labels(None, 1), table)
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
        except NotFiniteSamples as error:
            tqdm.write(f"step {step}: no picture, {error}", file=sys.stderr)
            return None
        finally:
            self._generator.params = None  # no whole copy on each device while training goes on
        with files.naming(path):
            data.save_grid(path, pictures, overwrite=True, about=self._about(ema, step))
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
            batch_size=BATCH,
            checkpoint=workdir,
        )
