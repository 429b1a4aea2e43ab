"""A model is everything a checkpoint says: network, weights, and how to draw with them.

    model = ddim_jax.load("digits")
    pictures = model.draw(40)                                   # uint8 [40, 28, 28, 1]
    pictures = model.draw(label=[3, 1, 4], solver="unipc_2", steps=8, guidance_scale=2.0, seed=7)
    pictures = model.draw(prompt="a red apple", size=(512, 768))       # of a network with texts
    clips = model.draw(first_frame=picture, extend=64)                 # of a network of clips
    denoise = model.denoiser(label=[3, 1, 4])                   # (x, level) -> x0 and eps

Training, sampling, editing and evaluation all hold a `Model` and nothing else. `experiment.build`
makes one without weights from a config; `checkpoints.load` makes one with weights.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ddim_jax import abilities, clip_drawing, drawing, fingerprints, programs, sampling
from ddim_jax.adaptive_sampling import Tolerance
from ddim_jax.batch_loop import Generator, check_count
from ddim_jax.codecs import Codec
from ddim_jax.denoisers import Denoiser
from ddim_jax.dropping import SLOPE, Nulled
from ddim_jax.frame_noise import FrameNoise
from ddim_jax.inputs import Inputs
from ddim_jax.networks import winograd
from ddim_jax.predictions import Parameterization, Prediction
from ddim_jax.recipe import ADAPTIVE, Recipe
from ddim_jax.schedules import NoiseLevel, Schedule
from ddim_jax.solvers import SolverTable
from ddim_jax.solvers.jumps import line

Array = Any


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
    """A network, what it predicts, what it is told, and how to draw with it.

    Attributes:
        network: the flax module, called with (x, t, inputs, dropout_keys).
        params: its float32 parameters (the moving average); None before training.
        schedule: the forward process.
        parameterization: what the network predicts.
        inputs: what it is told beside x and t.
        codec: samples to pictures and back.
        recipe: how it draws unless asked otherwise.
        config: what it was trained with, see `configs/`.
        name: for messages and file names.
        step: training steps.
        frame_noise: of clips, how the noise of frames is correlated; None: it is not.
        loras: files merged into `params` and the text encoders, as JSON: path, scale, sha256.
    """

    network: Any
    params: Any
    schedule: Schedule
    parameterization: Parameterization
    inputs: Inputs
    codec: Codec
    recipe: Recipe
    config: ml_collections.ConfigDict
    name: str = "model"
    step: int = 0
    frame_noise: FrameNoise | None = None
    loras: tuple[dict[str, Any], ...] = ()
    _ready: ClassVar[dict[Any, Any]]  # of each instance, see below
    _placed: ClassVar[dict[Any, Any]]

    def __post_init__(self):
        """Makes room for what is ready for drawing, which an instance keeps and no copy has."""
        self.__dict__.update(_ready={}, _placed={})

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"Model({self.name!r}, step {self.step}, {count:,} parameters, "
            f"pictures {self.codec.picture_shape}, {self.inputs.describe()}, "
            f"{self.schedule.name} schedule, {self.recipe})"
        )

    def replace(self, **changes: Any) -> "Model":
        """The model with other attributes, such as other `params`."""
        return dataclasses.replace(self, **changes)

    def with_parts(
        self,
        params: Any,
        codec_params: Any = None,
        text_params: Sequence[Any] = (),
        tokenizers: Sequence[Any] = (),
    ) -> "Model":
        """The model with the parameters of all its networks.

        Args:
            params: of the network.
            codec_params: of the autoencoder, if it has one.
            text_params: of each text encoder.
            tokenizers: of each text encoder.
        """
        inputs = self.inputs
        if inputs.encode is not None:
            texts = {"params": tuple(text_params), "tokenizers": tuple(tokenizers)}
            encode: Any = inputs.encode
            inputs = dataclasses.replace(inputs, encode=dataclasses.replace(encode, **texts))
        codec = self.codec if codec_params is None else self.codec.given(codec_params)
        return self.replace(params=params, codec=codec, inputs=inputs)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch."""
        return self.codec.sample_shape

    @property
    def draws_latents(self) -> bool:
        """Whether its samples are latents, which the codec decodes."""
        return tuple(self.sample_shape) != tuple(self.codec.picture_shape)

    # --- the network as a function ----------------------------------------------------------------

    def init(self, key: Array) -> Any:
        """Fresh parameters; run it under `jax.eval_shape` for their shapes alone."""
        return self.network.init(key, *self.example())["params"]

    def apply(
        self, params: Any, x: Array, model_time: Array, inputs: dict, dropout_keys: Any = None
    ) -> Array:
        """The network's output F; in training mode if it is given dropout keys.

        Args:
            params: its parameters, or what `prepared` made of them.
            x: [B, *sample_shape].
            model_time: [B].
            inputs: name -> [B, ...].
            dropout_keys: [B], one a row; None for no dropout.
        """
        return programs.apply_of(self.network)(params, x, model_time, inputs, dropout_keys)

    def prepared(self, params: Any) -> Any:
        """Parameters for many evaluations on a CPU, for `apply`: see `networks/winograd.py`."""
        if not winograd.any_suits(params):
            return params
        told = tuple(self.inputs.declared.items())
        kernels = programs.winograd_of(self.network, self.sample_shape, told, params)
        return {"params": params, winograd.COLLECTION: kernels} if kernels else params

    def initial_noise(self, keys: Array) -> Array:
        """What samples of these keys [B] start from, [B, *sample_shape]."""
        return sampling.initial_noise(keys, self.sample_shape, self.frame_noise)

    def features(self, params: Any, x: Array, model_time: Array, inputs: dict) -> Array:
        """What the network makes of x half-way, [B, h, w, C], where it is smallest.

        Args:
            params: its parameters.
            x: [B, *sample_shape].
            model_time: [B].
            inputs: name -> [B, ...].
        """
        return programs.features_of(self.network)(params, x, model_time, inputs)

    def example(self) -> tuple:
        """x, t and inputs of one sample, as the network takes them."""
        return programs.example(self.sample_shape, self.inputs.declared)

    # --- the parts of drawing ---------------------------------------------------------------------

    def sampler(self, recipe: Recipe | None = None, **options: Any) -> Callable[..., Any]:
        """The jitted sampler of a recipe, default the model's own; only its clip matters to it.

        Args:
            recipe: with a table, `sampling.make_sampler`; adaptive, `make_adaptive_sampler` of
                `adaptive_sampling`.
            **options: of these.

        Raises:
            ValueError: something to collect without a table.
        """
        recipe = recipe or self.recipe
        adaptive = recipe.solver == ADAPTIVE
        if adaptive and options.pop("collect", ()):
            raise ValueError("a trajectory needs a table: samples under a tolerance share no steps")
        options |= {"clip": recipe.clip} | ({"schedule": self.schedule} if adaptive else {})
        if self.frame_noise and not adaptive:
            options["frame_noise"] = self.frame_noise
        return programs.sampler_of(
            self.network, self.parameterization, self._nulled, tuple(sorted(options.items()))
        )

    @property
    def _nulled(self) -> Nulled | None:
        return Nulled(self.inputs.null) if self.inputs.null else None

    def denoiser(
        self, label: Any = None, prompt: Any = None, negative_prompt: Any = None, **recipe: Any
    ) -> Denoiser:
        """The network as `(x, level) -> Prediction(x0, eps)`, guided and clipped by a recipe.

        Args:
            label: for a network with classes, a number or name for all rows of x, or a list with
                one for each row; default the null label.
            prompt: for a network that is told texts, one for all rows or a list; default "".
            negative_prompt: what to guide away from, likewise; default the model's null text.
            **recipe: fields of `Recipe` to replace, such as guidance_scale=2 or clip="none".

        Raises:
            ValueError: a label or recipe that the network cannot serve.
        """
        chosen = self.recipe.replace(**recipe)
        self.check(chosen)
        count = max(_asked(label), _asked(prompt))
        nulls = label is None and self.inputs.num_classes
        labels = self.null_labels(1) if nulls else self.inputs.labels(label, count)
        conditions = self.conditions(
            count, chosen, labels, prompt=prompt, negative_prompt=negative_prompt
        )
        make = sampling.make_denoiser(
            self.apply, self.parameterization, self._nulled, chosen.clip, None
        )
        inputs, guidance = conditions["inputs"], conditions["guidance"]

        def denoise(x: Array, level: NoiseLevel) -> Prediction:
            repeated = jax.tree.map(lambda v: jnp.repeat(jnp.asarray(v), len(x), 0), inputs)
            rows = repeated if count == 1 else jax.tree.map(jnp.asarray, inputs)
            return make(self.params, rows, guidance)(x, level)

        return denoise

    def null_labels(self, count: int) -> np.ndarray:
        """The null label, int32 [count], for what is drawn without a class.

        Raises:
            ValueError: the network has none, or was trained without it.
        """
        if not abilities.knows_null(self):
            has_one = self.config.model.get("null_label", True)
            what = "was trained without label dropout and so knows" if has_one else "has"
            raise ValueError(
                f"{self.name} {what} no null label to stand for no class: give a label, 0.."
                f"{self.inputs.num_classes - 1}"
            )
        return np.full(count, self.inputs.num_classes, np.int32)

    def notes(self, recipe: Recipe) -> list[str]:
        """What is allowed and still disappoints in a recipe, in a sentence each; mostly none."""
        return abilities.notes(self, recipe)

    def check(self, recipe: Recipe) -> None:
        """Raises ValueError for what this network was not trained for: guidance, or to draw."""
        abilities.check(self, recipe)

    def check_weights(self) -> None:
        """Raises ValueError where it has shapes alone, as those of `pipelines.shapes`."""
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(self.params)):
            raise ValueError(f"{self.name} has shapes and no weights: it can be planned with alone")

    def conditions(
        self,
        count: int,
        recipe: Recipe,
        labels: np.ndarray | None,
        table: SolverTable | Tolerance | None = None,
        *,
        prompt: Any = None,
        negative_prompt: Any = None,
        channels: Array | None = None,
        frame_rate: Array | None = None,
        alone: Array = False,
    ) -> dict[str, Any]:
        """`inputs` and `guidance` of N samples, as `Generator.batches` takes them.

        Args:
            count: N.
            recipe: its guidance.
            labels: int32 [N], for a network with classes.
            table: the sampler, whose step length some networks are told.
            prompt: of a network that is told texts: one, a list in rotation, or what
                `inputs.told` made of them; None: the empty text.
            negative_prompt: what to guide away from, likewise; None: the model's null text.
            channels: [N, h, w, C] of a network that takes more than the sample's, see
                `editing/inpainting.py`.
            frame_rate: scalar or [N], frames a second, of a network that is told them; 0: unknown;
                None: `self.frame_rate`.
            alone: scalar or [N], whether the frames of a clip are drawn apart from each other.

        Raises:
            ValueError: the network is told how long its steps are, and the table's differ; texts
                that it does not take.
        """
        scale, guidance = recipe.guidance_scale, recipe.guidance
        if self.inputs.takes("guidance"):
            guidance = None  # one evaluation does the work of two
        length, slope = self.jumps(table)
        height, width = self.codec.size
        inputs = self.inputs.arrays(
            labels,
            np.full(count, scale),
            None if length is None else np.full(count, length),
            sizes=np.array([height, width, 0, 0, height, width], np.float32),
            texts=self.inputs.texts(prompt, negative_prompt, count, guidance is not None),
            channels=channels,
            frame_rate=np.broadcast_to(
                self.frame_rate if frame_rate is None else frame_rate, count
            ),
            alone=np.broadcast_to(alone, count),
        )
        if slope:
            inputs |= {SLOPE: np.full(count, slope, np.float32)}
        return {"inputs": inputs, "guidance": guidance}

    @property
    def frame_rate(self) -> float:
        """Frames a second that clips are drawn at where nobody says it; 0: it is not known.

        Of `config.sample.frame_rate`, which a run takes from its clips, or of
        `config.data.frame_rate`.
        """
        for section in ("sample", "data"):
            rate = (self.config.get(section) or {}).get("frame_rate")
            if isinstance(rate, int | float) and rate > 0:
                return float(rate)
        return 0.0

    def passes(self, recipe: Recipe) -> int:
        """Forward passes that one network evaluation takes: 2 with classifier-free guidance."""
        return 1 + (recipe.guidance is not None and not self.inputs.takes("guidance"))

    def jumps(self, table: SolverTable | Tolerance | None) -> tuple[float | None, float]:
        """How far each step of a table goes in t, as `solvers.jumps.line`, of a network told that.

        Returns:
            (base, slope); (None, 0) of other networks, and without a table.

        Raises:
            ValueError: as of `solvers.jumps.line`.
        """
        if not self.inputs.takes("interval") or not isinstance(table, SolverTable):
            return None, 0.0
        base, slope = line(table, self.schedule)
        return base - slope * self.schedule.t_span[1], slope

    def generator(
        self, recipe: Recipe | None = None, *, parallel: str = "jit", **options: Any
    ) -> Generator:
        """The batch loop over `sampler`.

        Args:
            recipe: as of `sampler`.
            parallel: a name in `batch_loop.MODES`.
            **options: of a sampler with a table: collect, task, progress.
        """
        self.check_weights()
        sampler = self.sampler(recipe, **options)
        options = dict(prepare=self.prepared, mode=parallel, placed=self._placed)
        options["frame_noise"] = self.frame_noise
        return Generator(sampler, self.params, self.sample_shape, **options)

    def kept_generator(self, recipe: Recipe, parallel: str, **options: Any) -> Generator:
        """`generator`, the same for the same arguments: its parameters stay on the devices."""
        key = (self.sampler(recipe, **options), parallel)
        if key not in self._ready:
            self._ready[key] = self.generator(recipe, parallel=parallel, **options)
        return self._ready[key]

    def sized(self, size: tuple[int, int] | None, frames: int | None = None) -> "Model":
        """The model for pictures of another (height, width), for clips of so many frames.

        None for either: as it is.

        Raises:
            ValueError: a size that its network or its codec cannot serve; frames of pictures.
        """
        height, width, frames = shape = abilities.shape(self, size, frames)
        if shape == (*self.codec.size, self.codec.frames):
            return self
        if shape not in self._ready:
            codec = self.codec.at(height, width, frames)
            inputs = self.inputs.with_channels(codec.sample_shape, self.inputs.channels)
            sized = self._ready[shape] = self.replace(codec=codec, inputs=inputs)
            sized.__dict__["_placed"] = self._placed
        return self._ready[shape]

    # --- drawing ----------------------------------------------------------------------------------

    def draw(
        self,
        count: int | None = None,
        *,
        label: Any = None,
        prompt: Any = None,
        negative_prompt: Any = None,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        seed: int = 0,
        batch_size: int = 64,
        progress: bool = False,
        **options: Any,
    ) -> np.ndarray:
        """Pictures, as the model's recipe says, on all devices of this process.

        Args:
            count: how many; default one for each label, prompt or picture given, or 16.
            label: a class, by number or name, or a list of them in rotation; default all classes.
            prompt: of a network that is told texts, one or a list in rotation; "" draws without.
            negative_prompt: what to guide away from, one or a list in rotation; default the
                model's null text.
            size: (height, width) of the pictures; default the model's own.
            frames: of clips, how many are drawn at once; default the model's own.
            seed: of the whole set; picture i is the same whatever `count` and `batch_size` are.
            batch_size: samples at a time.
            progress: show a bar over network evaluations.
            **options: fields of `Recipe` to replace: solver, stride, steps, solver_options,
                stride_options, guidance_scale, guidance_interval, guidance_rescale,
                guidance_channels, clip. Of clips also their `frame_rate`, `alone` and what is
                known, as of `generate`.

        Returns:
            uint8 [count, H, W, C], of clips [count, T, H, W, C].

        Raises:
            ValueError: a label, recipe or count that this model cannot serve.
        """
        known, told = (
            {name: options.pop(name) for name in names if name in options}
            for names in (clip_drawing.OPTIONS, clip_drawing.TOLD)
        )
        model = self.sized(size, frames)
        if count is None:
            given = clip_drawing.asked(model, known)
            nothing = label is None and prompt is None and not given
            count = 16 if nothing else max(_asked(label), _asked(prompt), given)
        return model.generate(
            count,
            self.recipe.replace(**options),
            label=label,
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
            **known,
            **told,
        ).pictures

    def generate(
        self,
        count: int,
        recipe: Recipe | None = None,
        *,
        label: Any = None,
        prompt: Any = None,
        negative_prompt: Any = None,
        seed: int = 0,
        index: np.ndarray | None = None,
        batch_size: int = 64,
        trajectory: bool = False,
        progress: bool = False,
        parallel: str = "jit",
        **clips: Any,
    ) -> drawing.Drawing:
        """`draw` with everything that is known of the pictures.

        Args:
            count: N.
            recipe: how; default the model's own.
            label: as of `draw`.
            prompt: as of `draw`.
            negative_prompt: as of `draw`.
            seed: as of `draw`.
            index: int [N], places of the samples in the set of this seed; default 0..N - 1.
            batch_size: samples at a time.
            trajectory: also return the clean estimates of every row; of a table only.
            progress: show a bar, moved from inside the compiled loop; over batches without a table.
            parallel: a name in `batch_loop.MODES`.
            **clips: `frame_rate` and `alone` of networks of clips, as of `conditions`; and what is
                known of their frames and how many there are in the end, see `clip_drawing`:
                first_frame, uint8 [H, W, C] or [P, H, W, C], or from_clip, [K, H, W, C] or
                [P, K, H, W, C], in rotation; extend, interpolate, overlap, known_by. Without
                labels such clips are drawn without a class.

        Raises:
            ValueError: as `draw`; a trajectory without a table; a tolerance that was not met.
        """
        recipe = recipe or self.recipe
        self.check(recipe)
        count, batch_size = check_count(count, batch_size)
        self.check_weights()
        if prompt is None and self.inputs.takes("text"):
            raise ValueError("this network draws from a text: give a prompt; '' for none")
        known = {name: clips.pop(name) for name in clip_drawing.OPTIONS if name in clips}
        plan = clip_drawing.plan(self, known)
        for name in clip_drawing.TOLD:
            if name in clips and not self.codec.frames:
                raise ValueError(
                    f"{name} is of clips, and {self.name} draws pictures: leave it out"
                )
        told = {"prompt": prompt, "negative_prompt": negative_prompt} | clips
        index = np.arange(count) if index is None else index
        asked: dict[str, Any] = {
            "seed": seed,
            "batch_size": batch_size,
            "progress": progress,
            "parallel": parallel,
        }
        if plan is not None:
            if trajectory:
                raise ValueError("a trajectory is of clips that are drawn at once, from noise")
            return clip_drawing.draw(self, recipe, index, label, told, plan, **asked)
        labels = self.inputs.labels(label, count)
        return drawing.generate(self, recipe, index, labels, told, trajectory=trajectory, **asked)

    def pictures(self, x: Array) -> np.ndarray:
        """Samples [N, *sample_shape] as uint8 pictures [N, H, W, C]; ValueError if not finite."""
        if not np.all(np.isfinite(x)):
            raise ValueError("samples must be finite to be shown as pictures, got infinity or NaN")
        return np.asarray(self.codec.decode(self.codec.params, x))

    # --- identity ---------------------------------------------------------------------------------

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the parameters, see `fingerprints`."""
        return fingerprints.fingerprint(self.params)

    @functools.cached_property
    def around(self) -> dict[str, str]:
        """sha256 of the parameters of "autoencoder" and "text_encoders", as far as it has them."""
        texts = getattr(self.inputs.encode, "params", ())
        parts = {
            "autoencoder": self.codec.params,
            "text_encoders": {str(i): one for i, one in enumerate(texts)},
        }
        return {name: fingerprints.fingerprint(params) for name, params in parts.items() if params}

    @property
    def computed_in(self) -> str:
        """Dtypes of the parameters, and what its network computes in where that is another."""
        kinds = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(self.params)})
        own = getattr(self.network, "dtype", None)
        return ", ".join(kinds) + ("" if own is None or kinds == [own] else f", computed in {own}")

    def origin(self, table: SolverTable) -> dict[str, Any]:
        """What decides samples beside seed, labels and guidance, as JSON.

        Folders of samples keep it, so that they are extended only by what drew them.
        """
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(table):  # in float32: that is what the sampler sees
            digest.update(np.asarray(leaf, np.float32).tobytes())
        network = {name: self.config[name] for name in ("model", "schedule", "prediction")}
        return {
            "table": digest.hexdigest(),
            "weights": self.fingerprint,
            "network": json.loads(json.dumps(network, default=lambda section: section.to_dict())),
            "image_shape": list(self.sample_shape),
            "dtype": self.computed_in,
        } | self.around


def _asked(given: Any) -> int:
    """How many samples a label, a prompt, or a list of them asks for."""
    if isinstance(given, dict):
        return len(given["text"])
    return max(1, len(given)) if isinstance(given, (list, tuple, np.ndarray)) else 1
