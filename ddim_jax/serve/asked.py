"""What a client asks for, from JSON to a job; everything is checked before it enters the queue."""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pydantic

from ddim_jax import keys, names, provenance
from ddim_jax.export import row
from ddim_jax.model import Model
from ddim_jax.recipe import ADAPTIVE, Recipe
from ddim_jax.serve.engine import Job
from ddim_jax.solvers import SOLVERS, SolverTable

Options = dict[str, float | int | bool | str | None]
Text = pydantic.constr(max_length=4000)
FORMATS = ("png", "npz", "json", "events")
RECIPE = ("solver", "stride", "steps", "solver_options", "stride_options", "guidance_scale")
"""Fields that replace those of the model's recipe; the others would be other programs."""


class Limits(NamedTuple):
    """The most that a request may ask for.

    Attributes:
        num: pictures.
        steps: of a stride.
        body: bytes.
        deadline: seconds.
    """

    num: int = 16
    steps: int = 100
    body: int = 2**16
    deadline: float = 60.0


class Asked(pydantic.BaseModel, extra="forbid", strict=True):
    """What POST /draw takes; all of it may be left out. The fields are those of `Model.draw`."""

    model: str | None = pydantic.Field(
        None, max_length=200, description="a name that GET /models lists; default the first"
    )
    num: int | None = pydantic.Field(
        None, description="how many pictures; default one for each label or prompt"
    )
    label: int | str | list[int | str] | None = pydantic.Field(
        None, description="a class, by number or name, or several in rotation; default all"
    )
    prompt: Text | list[Text] | None = pydantic.Field(
        None, description="of a model that is told texts, one or several in rotation"
    )
    negative_prompt: Text | None = pydantic.Field(None, description="what to guide away from")
    seed: int = pydantic.Field(0, description="of the pictures, 0..2^64 - 1")
    solver: str | None = pydantic.Field(
        None, max_length=100, description=f"one of {', '.join(SOLVERS)}; default the model's own"
    )
    stride: str | None = pydantic.Field(None, max_length=100, description="default the solver's")
    steps: int | None = pydantic.Field(None, description="of the stride; default the model's own")
    solver_options: Options | None = pydantic.Field(None, description='like {"eta": 0.5}')
    stride_options: Options | None = pydantic.Field(None, description='like {"rho": 5}')
    guidance_scale: float | None = pydantic.Field(
        None, description="1: none; 0: without labels or texts; default the model's own"
    )
    format: Literal[FORMATS] | None = pydantic.Field(
        None,
        description="png (of several pictures a sheet), npz, json, or events (server-sent: the "
        "estimates on the way, then the pictures); default by the header Accept, or png",
    )
    deadline: float | None = pydantic.Field(
        None, description="seconds after which the answer is of no use; default the server's"
    )


def parse(body: bytes) -> Asked:
    """What a body asks for.

    Raises:
        ValueError: no JSON, unknown fields, values of other types.
    """
    try:
        return Asked.model_validate_json(body or b"{}")
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"][:1])
        if first["type"] == "extra_forbidden":
            names.check_names([where], Asked.model_fields, "a request")
        if first["type"] == "json_invalid":
            raise ValueError(
                f'the body must be a JSON object like {{"num": 1}}: {first["msg"]}'
            ) from None
        given = repr(first["input"])
        given = given if len(given) < 100 else given[:97] + "..."
        raise ValueError(
            f"{where or 'the body'}: {first['msg'][0].lower()}{first['msg'][1:]}, got {given}; "
            "GET /openapi.json says what each field takes"
        ) from None


class Drawable(NamedTuple):
    """A recipe that can be drawn with, and what its pictures say of it."""

    recipe: Recipe
    table: SolverTable
    rows: np.ndarray
    about: dict[str, Any]


class Desk:
    """Turns what clients ask for into jobs.

    Args:
        models: by name; the first is the default.
        limits: of a request.
    """

    def __init__(self, models: Mapping[str, Model], limits: Limits = Limits()):  # noqa: B008
        self.models, self.limits = dict(models), limits
        self._drawable = functools.lru_cache(maxsize=256)(self._make_drawable)

    def job(self, asked: Asked, on_estimate: Any = None) -> Job:
        """The job of a request.

        Raises:
            ValueError: what the model cannot serve, or the limits do not allow.
        """
        name = asked.model if asked.model is not None else next(iter(self.models))
        model = names.lookup(self.models, name, "model")
        drawable = self.drawable(asked)
        num = asked.num
        if num is None:
            num = max(_count(asked.label), _count(asked.prompt))
        num = names.check_range(
            "num", num, f"[1, {self.limits.num}]", "ask several times for more", whole=True
        )
        names.check_range("deadline", self.deadline(asked), f"(0, {self.limits.deadline:g}]")
        label = asked.label[:num] if isinstance(asked.label, list) else asked.label
        labels = model.inputs.labels(label, num)
        return Job(
            name, drawable.recipe, drawable.table, drawable.rows,
            num=num, labels=labels, prompts=_prompts(model, asked, num),
            negative_prompt=asked.negative_prompt, seed=keys.check_seed(asked.seed),
            on_estimate=on_estimate,
        )  # fmt: skip

    def deadline(self, asked: Asked) -> float:
        """Seconds that a request may take."""
        return self.limits.deadline if asked.deadline is None else asked.deadline

    def drawable(self, asked: Asked) -> Drawable:
        """The recipe of a request, the last ones kept.

        Raises:
            ValueError: as of `job`.
        """
        name = asked.model if asked.model is not None else next(iter(self.models))
        names.lookup(self.models, name, "model")
        given = {field: getattr(asked, field) for field in RECIPE}
        return self._drawable(name, json.dumps(given, sort_keys=True))

    def about(self, asked: Asked, job: Job) -> dict[str, Any]:
        """What the files of a job's pictures hold, see `provenance`."""
        index = np.arange(job.num)
        own = {"seed": job.seed, "batch_size": job.num, "negative_prompt": job.negative_prompt}
        made = self.drawable(asked).about | own
        return made | provenance.places(index, job.labels, job.prompts)

    def _make_drawable(self, name: str, given: str) -> Drawable:
        model, fields = self.models[name], json.loads(given)
        if (fields["stride"] or "").endswith(".json"):
            raise ValueError(
                f"stride must be a name, got {fields['stride']!r}: a server reads no files for its "
                "clients; serve a checkpoint whose recipe has the learned stride"
            )
        if fields["steps"] is not None:
            names.check_range("steps", fields["steps"], f"[1, {self.limits.steps}]", whole=True)
        recipe = model.recipe.replace(**fields)
        if recipe.solver == ADAPTIVE:
            raise ValueError(
                "solver adaptive chooses its own steps and has no table to share evaluations by; "
                f"it is one of {', '.join(SOLVERS)}"
            )
        model.check(recipe)
        table = recipe.table(model.schedule)
        if model.jumps(table)[1]:
            raise ValueError(
                f"{given}: this network is told how long its steps are, and a server tells it one "
                "length for all; use ddim on the uniform stride"
            )
        with np.errstate(over="ignore"):
            rows = row.pack(table)
        if not np.all(np.isfinite(rows)):
            raise ValueError(f"{given}: its table is not finite in float32; give smaller options")
        about = provenance.about(
            model, recipe, seed=0, index=np.arange(1), labels=None, batch_size=1
        )
        about["loras"] = [dict(one, path=one["path"].rpartition("/")[2]) for one in about["loras"]]
        return Drawable(recipe, table, rows, about)


def _count(given: Any) -> int:
    return len(given) if isinstance(given, list) else 1


def _prompts(model: Model, asked: Asked, num: int) -> list[str] | None:
    """The texts of a request, no more than it has pictures.

    Raises:
        ValueError: texts for a model that takes none, none for one that does, or too long ones.
    """
    if not model.inputs.takes("text"):
        model.inputs.texts(asked.prompt, asked.negative_prompt, 1, False)
        return None
    if asked.prompt is None or asked.prompt == []:
        raise ValueError(f"{model.name} draws from a text: give a prompt; '' for none")
    prompts = asked.prompt[:num] if isinstance(asked.prompt, list) else [asked.prompt]
    for field, texts in (("prompt", prompts), ("negative_prompt", [asked.negative_prompt or ""])):
        check_lengths(model, field, texts)
    return prompts


def check_lengths(model: Model, field: str, texts: Sequence[str]) -> None:
    """Raises ValueError for a text of more tokens than the model's encoders take."""
    for tokenizer in getattr(model.inputs.encode, "tokenizers", ()):
        for text in texts:
            if rest := tokenizer.cut(text):
                rest = rest if len(rest) < 100 else rest[:97] + "..."
                raise ValueError(
                    f"{field} must have at most {tokenizer.length - 2} tokens, got "
                    f"{len(tokenizer.tokens(text))}; leave out {rest!r}"
                )
