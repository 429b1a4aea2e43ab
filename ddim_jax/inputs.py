"""What a network is told beside the noisy sample and its time: labels, texts, guidance scales.

A network declares its inputs by name (`network.inputs`), each an array of B rows. The same names
are the keys of the dict `inputs` that networks, losses, samplers and the data pipeline pass on; the
dict of a network without inputs is empty. Some inputs can be dropped: such an input has a null
value, which training puts in its place in some rows and guidance puts in all of them. Where the
null is one of many, as with negative prompts, the inputs hold it under `NULL`, row by row, and
guidance takes it from there: another one compiles nothing.

Source: Ho & Salimans 2022 (arXiv:2207.12598), section 3.2 (dropping the label to a null label).
"""

import dataclasses
import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddim_jax.dropping import ALONE, AUGMENT, NULL, nulled
from ddim_jax.names import as_whole, few, is_unicode, parse_value
from ddim_jax.rows import Rows

Array = Any
UNLABELLED = "guidance_scale=0 draws without a label"
CHANNELS = "channels"
"""Input that a network takes as further channels of x, such as a mask and what it keeps."""

FRAME_RATE = "frame_rate"
"""Input of networks of clips: frames a second, 0 where it is not known."""


class Input(NamedTuple):
    """One input of a network, an array [B, *shape].

    Attributes:
        shape: of one row.
        dtype: name of the dtype.
        null: its value where it is dropped, a number or an array [*shape]; None if it never is.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    null: Any = None


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of one network, and how they are made from numbers and names.

    Attributes:
        declared: name -> `Input`, as the network declares them.
        class_names: names of the classes in the order of their labels; () if they have none.
        encode: P texts -> name -> [P, ...], what the network is told of them, see `texts.Texts`;
            None for a network without.

    Raises:
        ValueError: not one name for each class.
    """

    declared: Mapping[str, Input]
    class_names: tuple[str, ...] = ()
    encode: Callable[[Sequence[str]], dict[str, np.ndarray]] | None = None

    def __post_init__(self):
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names must name all {self.num_classes} classes of the network, got "
                f"{len(self.class_names)} names"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for a network without labels. The null label is num_classes."""
        return self.declared["label"].null if self.takes("label") else 0

    def describe(self) -> str:
        """The classes in words, and that it is told a text."""
        names = f" ({few(self.class_names)})" if self.class_names else ""
        told = [f"{self.num_classes} classes{names}"] if self.num_classes else []
        told += ["a text"] if self.takes("text") else []
        return " and ".join(told) or "without classes"

    @property
    def null(self) -> dict[str, Any]:
        """Name -> null value, of the inputs that can be dropped; {} for none."""
        return {name: put.null for name, put in self.declared.items() if put.null is not None}

    @property
    def channels(self) -> int:
        """Further channels that the network takes beside its sample's."""
        return self.declared[CHANNELS].shape[-1] if self.takes(CHANNELS) else 0

    def with_channels(self, sample_shape: Sequence[int], count: int) -> "Inputs":
        """The inputs of a network that takes so many further channels of samples of this shape."""
        if not count:
            return self
        put = Input((*sample_shape[:-1], count))
        return dataclasses.replace(self, declared={**self.declared, CHANNELS: put})

    @property
    def dropped(self) -> dict[str, Any]:
        """Name -> what training puts where an input is dropped.

        That is `null`, and of texts the encoded empty one where the model draws without a text by
        that; the network is drawn with what it was trained with.
        """
        encode = self.encode
        if encode is None or not getattr(encode, "params", ()) or encode.null != "encode":
            return self.null
        return self.null | {name: rows[0] for name, rows in encode([""]).items()}

    def takes(self, name: str) -> bool:
        """Whether the network has an input of this name."""
        return name in self.declared

    def nulled(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """The inputs with every row of what can be dropped replaced by its null value."""
        return nulled(inputs, self.null)

    def labels(self, given: Any, count: int) -> np.ndarray | None:
        """Labels of `count` samples, the given ones in rotation.

        Args:
            given: a label, or a list of them, each a number in 0..num_classes - 1, such a number
                as a string, or a class name; None or an empty list means all classes.
            count: N, how many labels to return.

        Returns:
            int32 [N]; None for a network without labels.

        Raises:
            ValueError: labels for a network that takes none, a number out of range, an unknown
                name.
        """
        given = _listed(given)
        if not self.num_classes:
            if given:
                raise ValueError(f"this network is unconditional and takes no labels, got {given}")
            return None
        if not given:
            return (np.arange(count) % self.num_classes).astype(np.int32)
        return np.resize(np.array([self._label(one) for one in given], np.int32), count)

    def labels_of(self, source: Any, labels: np.ndarray) -> np.ndarray | None:
        """Labels of data as this network numbers its classes.

        Args:
            source: a `Source`.
            labels: int [N], as the source numbers its classes.

        Returns:
            int [N], by name where both have names, all of them known to the network; by number
            where neither has, or the network has as many classes; None otherwise.
        """
        names = source.class_names
        if names and self.class_names:
            if not set(names) <= set(self.class_names):
                return None
            return np.array([self.class_names.index(name) for name in names])[labels]
        count, named = source.num_classes, names or self.class_names
        fits = count == self.num_classes if named else count <= self.num_classes
        return labels if count and fits else None

    def titles(self, labels: Any) -> list[str] | None:
        """What sheets write above samples: names of classes up to a comma, or their numbers.

        Args:
            labels: int [N]; num_classes is the null label. None: there are none.
        """
        if labels is None:
            return None
        names = [name.partition(",")[0] for name in self.class_names]
        return [names[label] if label < len(names) else str(label) for label in labels]

    def is_class(self, text: str) -> bool:
        """Whether a text is a class: its name, or its number where classes have no names."""
        if not self.num_classes:
            return False
        known = self.class_names or map(str, range(self.num_classes))
        return text.strip().casefold() in (name.casefold() for name in known)

    def _label(self, given: Any) -> int:
        """The number of one class, given by its number or name."""
        names = {name.casefold(): number for number, name in enumerate(self.class_names)}
        if isinstance(given, str) and given.strip() in self.class_names:  # Dog beside dog
            return self.class_names.index(given.strip())
        if isinstance(given, str) and given.strip().casefold() in names:
            return names[given.strip().casefold()]
        number = _whole_number(given)
        if number is not None and 0 <= number < self.num_classes:
            return number
        close = difflib.get_close_matches(str(given).casefold(), names, 1)
        hint = f" (did you mean {self.class_names[names[close[0]]]!r}?)" if close else ""
        or_name = " or a class name" if names else ""
        listed = f"; classes: {few(self.class_names)}" if names else ""
        shown = given if str(given) else repr(given)
        unlabelled = "" if self.takes("guidance") else f"; {UNLABELLED}"
        raise ValueError(
            f"labels must be 0..{self.num_classes - 1}{or_name}, got {shown}{hint}"
            f"{unlabelled}{listed}"
        )

    def texts(self, prompt: Any, negative: Any, count: int, guided: bool) -> dict[str, Any]:
        """What the network is told of texts, for `count` samples.

        Args:
            prompt: a text, a list of them in rotation, or what `told` made of them; None: "".
            negative: what to guide away from, one text or one for each prompt; None: what `told`
                was given, or the model's null text.
            count: N.
            guided: whether the null is needed.

        Returns:
            name -> [N, ...], and with guidance those of the null under `NULL`; {} for a network
            that is told no text.

        Raises:
            ValueError: a text for a network that takes none, something that is no text.
        """
        if not self.takes("text"):
            for name, given in (("prompt", prompt), ("negative_prompt", negative)):
                if given is not None:
                    told = " and give labels" if self.takes("label") else ""
                    raise ValueError(f"this network is told no text: leave out {name}{told}")
            return {}
        told = prompt if isinstance(prompt, Mapping) else self.told(prompt, negative)
        if not guided:
            if any(_texts(negative, "negative_prompt")):
                warn_unguided(negative)
            told = {name: value for name, value in told.items() if name != NULL}
        elif told is prompt and (negative is not None or NULL not in told):
            told = told | {NULL: self._null_of(told, negative)}
        return jax.tree.map(lambda rows: _rotated(rows, count), told)

    def told(self, prompt: Any, negative: Any = None) -> dict[str, Any]:
        """Encodes texts, once for any number of drawings.

        Args:
            prompt: a text or P of them; None: "".
            negative: a text or one for each prompt; None: the model's null text.

        Returns:
            name -> [P, ...], and those of the null under `NULL`.

        Raises:
            ValueError: something that is no text, or not as many.
        """
        prompts, negatives = _texts(prompt, "prompt"), _texts(negative, "negative_prompt")
        if len(negatives) not in (1, len(prompts)):
            raise ValueError(
                f"negative_prompt must be one text or one for each of {len(prompts)} prompts, got "
                f"{len(negatives)}"
            )
        texts = list(dict.fromkeys(prompts + negatives))
        if self.encode is None:
            raise ValueError(
                "this model came without a text encoder: load the folder of its whole pipeline, or "
                "give the texts' features"
            )
        encoded = self.encode(texts)
        number = {text: place for place, text in enumerate(texts)}
        own, null = (
            {name: Rows(rows, [number[text] for text in chosen]) for name, rows in encoded.items()}
            for chosen in (prompts, negatives)
        )
        if negative is None and getattr(self.encode, "null", "encode") == "zeros":
            absent = {name: np.asarray(self.declared[name].null, own[name].dtype) for name in null}
            shapes = {name: (1, *rows.shape[1:]) for name, rows in null.items()}
            null = {name: np.broadcast_to(absent[name], shape) for name, shape in shapes.items()}
        return own | {NULL: jax.tree.map(lambda rows: _rotated(rows, len(prompts)), null)}

    def _null_of(self, told: Mapping[str, Any], negative: Any) -> dict[str, Any]:
        """What `NULL` holds of texts that are encoded already."""
        if not getattr(self.encode, "params", self.encode):
            raise ValueError(
                f"features of texts need those of the null to guide away from under {NULL!r}, as "
                "this model came without a text encoder; give them, or guidance_scale=1"
            )
        return self.told([""] * len(told["text"]), negative)[NULL]

    def arrays(
        self,
        labels: Array | None,
        guidance: Array = 1.0,
        interval: Array | None = None,
        *,
        sizes: Array | None = None,
        texts: Mapping[str, Any] | None = None,
        channels: Array | None = None,
        frame_rate: Array = 0.0,
        alone: Array = False,
    ) -> dict[str, np.ndarray]:
        """The network's inputs as numpy arrays [N, ...]; what it does not take is left out.

        Args:
            labels: int [N], of a class-conditional network.
            guidance: scalar or [N], the guidance scale; of a network distilled from a guided one.
            interval: scalar or [N], the length of the sampler's steps in t; of a network that is
                told how far to jump.
            sizes: [S] or [N, S], of a network that is told the sizes of its picture.
            texts: of `texts`.
            channels: [N, h, w, C], of a network that takes further channels beside its sample's.
            frame_rate: scalar or [N], frames a second, of a network that is told them; 0: unknown.
            alone: scalar or [N], whether the frames of a clip are drawn apart from each other.

        Returns:
            Name -> [N, ...]. N is 1 if all values are scalars.

        Raises:
            ValueError: an input of the network is missing, or lengths differ.
        """
        texts = dict(texts or {})
        null = texts.pop(NULL, None)
        given = {"label": labels, "guidance": guidance, "interval": interval, "sizes": sizes}
        given |= {CHANNELS: channels, FRAME_RATE: frame_rate, ALONE: alone}
        if self.takes(AUGMENT):
            given[AUGMENT] = np.zeros((np.size(guidance), *self.declared[AUGMENT].shape))
        given = {name: (given | texts).get(name) for name in self.declared}
        for name, value in given.items():
            if value is None:
                raise ValueError(_missing(name))
        arrays = {}
        for name, put in self.declared.items():
            rows = given[name]
            if not isinstance(rows, Rows):
                rows = np.asarray(rows, put.dtype)
                rows = rows if rows.ndim > len(put.shape) else rows[None]
            if rows.shape[1:] != tuple(put.shape):
                raise ValueError(f"{name} must be [N, *{put.shape}], got {rows.shape}")
            arrays[name] = rows
        sizes = {name: len(array) for name, array in arrays.items()}
        count = max(sizes.values(), default=0)
        if not set(sizes.values()) <= {1, count}:
            raise ValueError(f"inputs must have one length, got {sizes}; scalars are repeated")
        arrays = {name: _rotated(array, count) for name, array in arrays.items()}
        return arrays if null is None else arrays | {NULL: null}


def warn_unguided(negative: Any) -> None:
    """Warns of a negative prompt where there is no guidance to lead away from it."""
    warnings.warn(
        f"negative_prompt={negative!r} changes nothing: it is what classifier-free guidance leads "
        "away from, and there is none; give a guidance_scale above 1 to a network that is not told "
        "it",
        stacklevel=2,
    )


def _missing(name: str) -> str:
    """Why an input must be given, and how."""
    if name == "interval":
        return f"this network takes {name!r} as an input: sample it over equal steps"
    if name == "label":
        return "this network is class-conditional: give the label of every sample"
    if name == CHANNELS:
        return (
            "this network completes pictures and draws none from noise alone: use `python -m "
            "ddim_jax edit inpaint`"
        )
    return f"this network takes {name!r} as an input, and it is not given"


def _texts(given: Any, what: str) -> list[str]:
    """One text or several as a list; of None the empty one."""
    texts = [""] if given is None else _listed(given)
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{what} must be a text or a list of texts, got {text!r}")
        if not is_unicode(text):
            raise ValueError(f"{what} must be of Unicode characters, got {text!r}; write it again")
    if not texts:
        raise ValueError(f"{what} is an empty list; give a text")
    return texts


def _rotated(rows: Any, count: int) -> Any:
    """`count` rows, the given ones in rotation."""
    if len(rows) == count:
        return rows
    if isinstance(rows, np.ndarray) and rows.ndim == 1:
        return np.resize(rows, count)
    return Rows(rows, np.arange(count) % len(rows))


def _listed(given: Any) -> list:
    """One label or several as a list."""
    if given is None:
        return []
    if isinstance(given, str) or not (isinstance(given, Sequence) or np.ndim(given)):
        return [given]
    return list(given)


def _whole_number(given: Any) -> int | None:
    """The integer that a number or a string stands for; None if it stands for none."""
    number = as_whole(parse_value(given) if isinstance(given, str) else given)
    number = number.item() if np.ndim(number) == 0 and hasattr(number, "item") else number
    return number if isinstance(number, int) and not isinstance(number, bool) else None
