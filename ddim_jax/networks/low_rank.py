"""Low-rank changes of a network's kernels: W + alpha / rank * down up.

    low_rank = LowRank(rank=4, targets=("attention",))
    factors = low_rank.init(key, params)              # up is 0: nothing is changed yet
    params = low_rank.merge(params, factors)          # differentiable by the factors

A kernel [I, O] has down [I, r] and up [r, O], a convolution [3, 3, I, O] down [3, 3, I, r]; of
layers that are stacked, [N, I, O], each has its own. Queries, keys and values that share a kernel
share down. No network knows of it: what is trained are the factors, what is run the merged kernels.
Layers that the network did not have before are trained whole, in the same tree.

Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1.
"""

import dataclasses
import fnmatch
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ddim_jax.names import check_options, check_range

Array = Any
ATTENTION = ("qkv", "q", "k", "v", "kv", "out")
GROUPS = ("attention", "convolutions", "dense")
"""Kernels by kind: of attention, of 3x3 convolutions, of dense layers, those of attention too."""


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Which kernels are changed, and by how much at most.

    Attributes:
        rank: r, inner size of each change.
        alpha: a change counts alpha / rank; None: as much as rank, so 1.
        targets: names in `GROUPS`, or patterns of a kernel's path like "mid_*/conv_?/kernel"; none
            of a run that trains only what is whole.
        whole: patterns of parameters that are trained themselves, beside the factors. In a run the
            layers that the network did not have before always are.

    Raises:
        ValueError: rank or alpha out of range, or targets that are no text.
    """

    rank: int = 4
    alpha: float | None = None
    targets: tuple[str, ...] = ("attention",)
    whole: tuple[str, ...] = ()

    def __post_init__(self):
        """Checks what does not depend on a network."""
        check_range("config.train.lora.rank", self.rank, "[1, inf)", "4 is usual", whole=True)
        if self.alpha is not None:
            check_range("config.train.lora.alpha", self.alpha, "(0, inf)", "None is that of rank")
        if not all(isinstance(one, str) for one in self.targets):
            raise ValueError(
                f"config.train.lora.targets must be some of {', '.join(GROUPS)} or patterns of "
                f"kernels, got {self.targets!r}"
            )

    @property
    def scale(self) -> float:
        """What a change is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def kernels(self, params: Any) -> list[str]:
        """Paths of the kernels that are changed, parts joined by "/".

        Args:
            params: of a network, or their shapes.

        Raises:
            ValueError: a target that no kernel has, a pattern that no parameter has, neither.
        """
        shapes = {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()}
        if not self._whole(shapes) and not self.targets:
            raise ValueError(
                "config.train.lora trains nothing: its targets must be some of "
                f"{', '.join(GROUPS)} or patterns of kernels, or whole patterns of parameters"
            )
        is_changed = lambda p: p.endswith("/kernel") and not _fits(p, self.whole)  # noqa: E731
        shapes = {path: shape for path, shape in shapes.items() if is_changed(path)}
        found = []
        for target in self.targets:
            chosen = [path for path in shapes if _chosen(target, path, shapes)]
            if not chosen:
                raise ValueError(
                    f"config.train.lora.targets: no kernel is {target!r}; it is one of "
                    f"{', '.join(GROUPS)}, or a pattern of paths like {min(shapes)}"
                )
            found += chosen
        return sorted(set(found))

    def init(self, key: Array, params: Any) -> Any:
        """Fresh factors: down uniform within 1 / sqrt(its inputs), as of peft, and up 0.

        Args:
            key: random key.
            params: of the network.

        Returns:
            The tree of the parameters with `down` and `up`, float32, in the place of each kernel,
            and what is trained whole as it is.
        """
        shapes, factors = flatten_dict(params, sep="/"), {}
        for path in self.kernels(params):
            *before, fan_in, features = shapes[path].shape
            place = path.removesuffix("kernel")
            bound = (fan_in * (np.prod(before) if len(before) == 2 else 1)) ** -0.5
            own = jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode())))
            shape = (*before, fan_in, self.rank)
            factors[f"{place}down"] = jax.random.uniform(own, shape, minval=-bound, maxval=bound)
            stacked = before if len(before) == 1 else []
            factors[f"{place}up"] = jnp.zeros((*stacked, self.rank, features))
        whole = {path: jnp.asarray(shapes[path]) for path in self._whole(shapes)}
        return unflatten_dict(factors | whole, sep="/")

    def merge(self, params: Any, factors: Any) -> Any:
        """The parameters, changed; the same ones if there are no factors.

        Args:
            params: of the network.
            factors: of `init`, or {}.
        """
        flat = flatten_dict(params, sep="/")
        for path, (down, up) in self.factors(factors).items():
            change = jnp.matmul(down, up, precision="highest")
            flat[path] = flat[path] + change.astype(flat[path].dtype)
        factors = flatten_dict(factors, sep="/")
        flat |= {path: leaf for path, leaf in factors.items() if _fits(path, self.whole)}
        return unflatten_dict(flat, sep="/")

    def factors(self, tree: Any) -> dict[str, tuple[Array, Array]]:
        """What a tree of `init` changes: path of a kernel -> (down, up), whose product is added."""
        flat = flatten_dict(tree, sep="/")
        places = [path.removesuffix("up") for path in flat if path.endswith("/up")]
        return {f"{p}kernel": (flat[f"{p}down"], self.scale * flat[f"{p}up"]) for p in places}

    def _whole(self, paths: Collection[str]) -> list[str]:
        """Of these paths those that are trained whole."""
        for pattern in self.whole:
            if not fnmatch.filter(paths, pattern):
                raise ValueError(
                    f"config.train.lora.whole: no parameter is {pattern!r}; it is a pattern of "
                    f"paths like {min(paths)}"
                )
        return [path for path in paths if _fits(path, self.whole)]


def of(section: Mapping[str, Any] | None) -> LowRank | None:
    """What a config's section `train.lora` says; None without one.

    Raises:
        ValueError: an unknown option, or one out of range.
    """
    if not section:
        return None
    options = dict(section)
    check_options(LowRank, options, "config.train.lora")
    for name in ("targets", "whole"):
        given = options.get(name, getattr(LowRank, name))
        text = ",".join((given,) if isinstance(given, str) else map(str, given))
        options[name] = tuple(filter(None, text.split(",")))
    return LowRank(**options)


def _fits(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _chosen(target: str, path: str, shapes: Mapping[str, tuple]) -> bool:
    """Whether a kernel is of a target."""
    if target == "convolutions":
        return len(shapes[path]) == 4
    if target == "dense":
        return len(shapes[path]) < 4
    if target != "attention":
        return fnmatch.fnmatchcase(path, target)
    layer, name = path.removesuffix("/kernel").rpartition("/")[::2]
    return name in ATTENTION and any(f"{layer}/{q}/kernel" in shapes for q in ("q", "qkv"))
