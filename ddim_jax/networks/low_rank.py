"""Low-rank changes of a network's kernels: W + alpha / rank * down up.

    low_rank = LowRank(rank=4, targets=("attention",))
    factors = low_rank.init(key, params)              # up is 0: nothing is changed yet
    params = low_rank.merge(params, factors)          # differentiable by the factors

A kernel [I, O] has down [I, r] and up [r, O], a convolution [3, 3, I, O] down [3, 3, I, r]; of
layers that are stacked, [N, I, O], each has its own. Queries, keys and values that share a kernel
share down. No network knows of it: what is trained are the factors, what is run the merged kernels.

Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1.
"""

import dataclasses
import fnmatch
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ddim_jax.names import check_options, check_range

Array = Any
ATTENTION = ("qkv", "q", "k", "v", "out")
GROUPS = ("attention", "convolutions", "dense")
"""Kernels by kind: of attention, of 3x3 convolutions, of dense layers, those of attention too."""


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Which kernels are changed, and by how much at most.

    Attributes:
        rank: r, inner size of each change.
        alpha: a change counts alpha / rank; None: as much as rank, so 1.
        targets: names in `GROUPS`, or patterns of a kernel's path like "mid_*/conv_?/kernel".

    Raises:
        ValueError: rank or alpha out of range, or no targets.
    """

    rank: int = 4
    alpha: float | None = None
    targets: tuple[str, ...] = ("attention",)

    def __post_init__(self):
        """Checks what does not depend on a network."""
        check_range("config.train.lora.rank", self.rank, "[1, inf)", "4 is usual", whole=True)
        if self.alpha is not None:
            check_range("config.train.lora.alpha", self.alpha, "(0, inf)", "None is that of rank")
        if not self.targets or not all(isinstance(one, str) for one in self.targets):
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
            ValueError: a target that no kernel has.
        """
        shapes = {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()}
        shapes = {path: shape for path, shape in shapes.items() if path.endswith("/kernel")}
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
            The tree of the parameters with `down` and `up`, float32, in the place of each kernel.
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
        return unflatten_dict(factors, sep="/")

    def merge(self, params: Any, factors: Any) -> Any:
        """The parameters, changed; the same ones if there are no factors.

        Args:
            params: of the network.
            factors: of `init`, or {}.
        """
        flat, factors = (flatten_dict(tree, sep="/") for tree in (params, factors))
        for path in [path for path in factors if path.endswith("/up")]:
            place = path.removesuffix("up")
            down, up = factors[f"{place}down"], self.scale * factors[path]
            change = jnp.matmul(down, up, precision="highest")
            kernel = flat[f"{place}kernel"]
            flat[f"{place}kernel"] = kernel + change.astype(kernel.dtype)
        return unflatten_dict(flat, sep="/")


def of(section: Mapping[str, Any] | None) -> LowRank | None:
    """What a config's section `train.lora` says; None without one.

    Raises:
        ValueError: an unknown option, or one out of range.
    """
    if not section:
        return None
    options = dict(section)
    check_options(LowRank, options, "config.train.lora")
    targets = options.get("targets", LowRank.targets)
    targets = ",".join((targets,) if isinstance(targets, str) else map(str, targets))
    return LowRank(**options | {"targets": tuple(filter(None, targets.split(",")))})


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
