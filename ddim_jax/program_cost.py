"""What programs cost: products, collectives, traffic of memory, bytes on a device.

Products are counted before compilation, from the jaxpr; the rest is read from the compiled
program, most of it from its text (optimised HLO).
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend import core

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
"""Of the types of arrays; others count 4."""

ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:,|$)")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
FUSED = re.compile(r"(?:calls|to_apply)=%?([\w.-]+)")
CALLED = re.compile(
    r"(body|condition|calls|to_apply|true_computation|false_computation|branch_computations)="
    r"(\{[^}]*\}|%?[\w.-]+)"
)
LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
"""In the condition of a loop: how often it runs."""

PART, START = "async_collective_fusion_config", "AsyncCollectiveStart"
"""A collective that goes on beside other work is written in each fusion that it lasts for, with a
PART; it begins in the one with START, and is sent once."""

RUN = {"while", "conditional", "call"}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"} | RUN
"""Instructions that move nothing; what those of RUN run is counted by itself."""


def product_flops(jaxpr: Any) -> int:
    """Operations of all matrix products and convolutions in a jaxpr: what the mathematics needs.

    A multiplication and an addition are two; products with the padding of a convolution are none.
    The body of a loop counts as often as it runs, what each device of a mesh does for itself on all
    of them, the dearest branch of a condition once.

    Args:
        jaxpr: of `jax.make_jaxpr(f)(...)`, or one inside it.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "dot_general":
            total += _dot_flops(equation)
        elif equation.primitive.name == "conv_general_dilated":
            total += _convolution_flops(equation)
        inner = [product_flops(part) for part in core.jaxprs_in_params(equation.params)]
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        times = equation.params["mesh"].size if equation.primitive.name == "shard_map" else times
        total += times * (max(inner) if equation.primitive.name == "cond" else sum(inner))
    return total


def _dot_flops(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution_flops(equation: Any) -> int:
    numbers, params = equation.params["dimension_numbers"], equation.params
    image, kernel = (equation.invars[i].aval.shape for i in range(2))
    out = equation.outvars[0].aval.shape
    inputs = kernel[numbers.rhs_spec[1]]
    total = 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * inputs
    for i, (low, _) in enumerate(params["padding"]):
        size, taps = image[numbers.lhs_spec[2 + i]], kernel[numbers.rhs_spec[2 + i]]
        starts = np.arange(out[numbers.out_spec[2 + i]]) * params["window_strides"][i] - low
        at = starts[:, None] + params["rhs_dilation"][i] * np.arange(taps)
        spread = params["lhs_dilation"][i]
        total *= int(np.sum((at >= 0) & (at <= spread * (size - 1)) & (at % spread == 0)))
    return total


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """name -> (how many, bytes of their results) of the collectives in a compiled program's text.

    Those in the body of a loop count as often as it runs. Of a pair of -start and -done the second
    is counted.
    """
    totals = {name: [0, 0] for name in COLLECTIVES}
    pattern = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start|-done)?\(")
    parts = _computations(text)
    for part, times in _times(parts).items():
        goes_on = _goes_on(parts[part])
        for line in parts[part]:
            match = pattern.search(line)
            if match and match[3] != "-start" and not (goes_on and PART in line):
                totals[match[2]][0] += times
                totals[match[2]][1] += times * sum(size for size, _ in _arrays(match[1]))
    return {name: tuple(value) for name, value in totals.items() if value[0]}


def _goes_on(lines: list[str]) -> bool:
    """Whether a collective that began before goes on, or ends, in a computation."""
    return any(PART in line for line in lines) and not any(START in line for line in lines)


def _computations(text: str) -> dict[str, list[str]]:
    """name -> lines, callees first; what is outside of any is ""."""
    parts: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.splitlines():
        head = COMPUTATION.match(line)
        name = head[2] if head else name
        parts.setdefault(name, []).append(line)
    return parts


def _times(parts: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs; every branch of a condition as often as that."""
    times = dict.fromkeys(parts, 0) | {"": 1}
    times[list(parts)[-1]] = 1  # ENTRY
    for name in reversed(parts):
        for line in parts[name]:
            called = {role: re.findall(r"[\w.-]+", names) for role, names in CALLED.findall(line)}
            limits = [LIMIT.search(one) for one in parts.get(*called.get("condition", [""]), [])]
            runs = max((int(limit[1]) for limit in limits if limit), default=1)
            for role, names in called.items():
                for inner in set(names) & set(times):
                    times[inner] += times[name] * (runs if role in ("body", "condition") else 1)
    return times


def traffic(text: str) -> int:
    """Bytes that a compiled program of a TPU reads from and writes to the memory of its device.

    Operands and results of every instruction that is run, but for arrays that the compiler keeps on
    the chip (layouts with S(1): VMEM); a copy between the two counts once. The "bytes accessed" of
    XLA's own cost analysis have those arrays as well, and copies three times. The body of a loop
    counts as often as it runs, and of an array that a part is taken of or put into, that part.

    Args:
        text: `compiled.as_text()`.
    """
    parts, total = _computations(text), 0
    fused = {name for line in text.splitlines() for name in FUSED.findall(line)}
    slices: dict[str, tuple[dict, dict]] = {}
    for name in parts:  # callees first
        if name in fused:
            slices[name] = _slices(parts[name], slices)
    for name, times in _times(parts).items():
        if name in fused and f"ENTRY %{name}" not in parts[name][0]:
            continue
        shapes: dict[str, str] = {}
        for line in parts[name]:
            if match := INSTRUCTION.match(line):
                shapes[match[1]] = match[2]
                total += times * _moved(match, line, shapes, slices)
    return total


def _moved(match: re.Match, line: str, shapes: dict[str, str], slices: dict) -> int:
    """Bytes of one instruction."""
    _, shape, kind, operands = match.groups()
    if kind in FREE or kind.endswith("-done"):
        return 0
    if kind in ("copy-start", "slice-start"):  # (from, to, ...) in either order
        ends = list(_arrays(shape))[:2]
        return min(size for size, _ in ends) * sum(far for _, far in ends)
    given = [shapes.get(_last(word), "") for word in operands.split(",")]
    taken, put = {}, {}
    if kind == "fusion" and (called := FUSED.search(line)):
        taken, put = slices.get(called[1], ({}, {}))
    elif kind == "dynamic-slice":
        taken = {0: _size(shape)}
    elif kind == "dynamic-update-slice":
        taken, put = {0: 0}, {_dims(shape): _size(given[1])}
    total = 0
    for place, part in enumerate(given):
        far = sum(size for size, far in _arrays(part) if far)
        total += min(far, taken.get(place, far))
    for whole in ARRAY.finditer(shape):
        far = sum(size for size, far in _arrays(whole[0]) if far)
        total += min(far, put.get(whole[2], far))
    return total


def _slices(lines: list[str], inner: dict) -> tuple[dict[int, int], dict[str, int]]:
    """What a fusion takes and puts of arrays in part.

    Args:
        lines: of its computation.
        inner: the same of the fusions inside it.

    Returns:
        Number of a parameter that only parts are read of -> their bytes, and dimensions of a result
        that a part is put into -> the bytes of that.
    """
    root: dict[str, int] = {}  # of a parameter and its bitcasts: its number
    shapes: dict[str, str] = {}
    taken: dict[int, int] = {}
    put: dict[str, int] = {}
    whole = set()
    goes_on = _goes_on(lines)
    for line in lines:
        match = INSTRUCTION.match(line)
        if not match:
            continue
        name, shape, kind, operands = match.groups()
        shapes[name] = shape
        words = [_last(word) for word in operands.split(",")]
        if kind == "parameter":
            root[name] = int(operands)
            continue
        if kind == "bitcast" and words[0] in root:
            root[name] = root[words[0]]
            continue
        parts: dict[int, int] = {}
        if kind == "dynamic-slice":
            parts = {0: _size(shape)}
        elif kind == "dynamic-update-slice":
            parts = {0: 0}
            put[_dims(shape)] = put.get(_dims(shape), 0) + _size(shapes.get(words[1], ""))
        elif kind == "fusion" and (called := FUSED.search(line)) and called[1] in inner:
            parts, more = inner[called[1]]
            put |= more
        elif goes_on and (PART in line or line.lstrip().startswith("ROOT")):  # hands arrays on
            parts = dict.fromkeys(range(len(words)), 0)
            handed = [shape] if PART in line else [shapes[word] for word in words if word in root]
            put |= dict.fromkeys(map(_dims, handed), 0)
        for place, word in enumerate(words):
            if word in root and place in parts:
                taken[root[word]] = taken.get(root[word], 0) + parts[place]
            elif word in root:
                whole.add(root[word])
    return {place: size for place, size in taken.items() if place not in whole}, put


def _dims(shape: str) -> str:
    """Of the first array of a shape, as text."""
    found = ARRAY.search(shape)
    return found[2] if found else ""


def _size(shape: str) -> int:
    return sum(size for size, _ in _arrays(shape))


def _last(operand: str) -> str:
    """The name in `bf16[2,3]{1,0} %name`, or in `%name`."""
    return operand.split()[-1].lstrip("%") if operand.strip() else ""


def _arrays(shape: str) -> Iterator[tuple[int, bool]]:
    """(bytes, whether in the memory of the device) of f32[3,4]{1,0}, or of a tuple of such."""
    for kind, dims, layout in ARRAY.findall(shape):
        size = BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
        yield size, "S(" not in layout


def memory_bytes(program: Any) -> int:
    """What a compiled program needs on each device: arguments, results, temporaries; 0 if unknown.

    Args:
        program: of `jax.jit(...).lower(...).compile()`.
    """
    analysis = program.memory_analysis()
    if analysis is None:
        return 0
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return sum(getattr(analysis, part) for part in parts) - analysis.alias_size_in_bytes
