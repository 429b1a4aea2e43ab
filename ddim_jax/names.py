"""Names become functions here: look up a name, check its options, call what it names.

An option's type is checked by the annotation of its parameter (`float`: a number, `int`: a whole
one), its range by the function itself, so once for flags, Python and configs. A whole number may be
written 2.0, and is 2 from there on.

A section is a mapping with a `name`; its other entries are options of the function of that name:
`make(SCHEDULES, {"name": "cosine", "log_snr_min": -15}, "schedule")` is
`SCHEDULES["cosine"](log_snr_min=-15)`. A command line writes options as `name=value,name=value`;
`parse_options` reads them.
"""

import ast
import difflib
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any


def lookup(known: Mapping[str, Any], name: str, what: str) -> Any:
    """Returns `known[name]`.

    Args:
        known: what there is, by name.
        name: one of its keys.
        what: what the name stands for, such as "solver", for the message.

    Raises:
        ValueError: an unknown name; the message gives the nearest and lists all known ones.
    """
    if name not in tuple(known):  # of values that have no hash too
        raise ValueError(
            f"unknown {what} {name!r}{did_you_mean(name, known)}; it is one of {', '.join(known)}"
        )
    return known[name]


def check_options(make: Callable, options: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Checks that a function takes options of these names and types.

    Args:
        make: the function or class. One with `**options` takes any. Of a class, `name` and
            `parent` are not options: flax adds them to every module.
        options: by name.
        what: whose options they are, such as "solver 'ddim'", for the message.

    Returns:
        The options, whole numbers as integers.

    Raises:
        ValueError: an unknown option; the message gives the nearest and lists all known ones. A
            value of another type than the parameter's annotation, where that is a number, a text
            or a bool; NaN.
    """
    parameters, taken = inspect.signature(make).parameters, dict(options)
    for name, value in options.items():
        kinds = _kinds(parameters[name].annotation if name in parameters else None)
        if (wanted := _misfit(value, kinds)) is not None:
            raise ValueError(f"{name} of {what} must be {wanted}, got {value!r}")
        if int in kinds and float not in kinds:
            taken[name] = as_whole(value)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return taken
    hidden = ("name", "parent") if inspect.isclass(make) else ()
    known = [name for name in parameters if name not in hidden]
    check_names(options, known, what)
    return taken


def check_names(options: Iterable[str], known: Collection[str], what: str) -> None:
    """Raises ValueError for an option that is not known; the message lists all that are."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        hint = did_you_mean(unknown[0], known)
        has = ", ".join(known) or "none"
        raise ValueError(f"{what} has no option {unknown[0]!r}{hint}; it has {has}")


def check_range(
    name: str, value: Any, within: str = "(-inf, inf)", hint: str = "", *, whole: bool = False
) -> Any:
    """Checks that an option is a finite number in a range.

    Args:
        name: of the option, for the message.
        value: what was given.
        within: the range, like "[0, 1)" or "(0, inf)".
        hint: the way out, such as a usual value.
        whole: integers only, which may be written 2.0.

    Returns:
        The number; an integer if `whole`.

    Raises:
        ValueError: no number (True and False are none), not finite, not whole, or out of range.
    """
    low, high = map(float, within[1:-1].split(","))
    value = _scalar(as_whole(value) if whole else value)
    kind = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        rule = "a whole number" if whole else "a number"
    elif not isinstance(value, numbers.Integral) and not math.isfinite(value):
        half = low > -math.inf and high == math.inf
        rule = "finite and " * half + _range(within)
    elif not low <= value <= high or value == low and within[0] == "(":
        rule = _range(within)
    elif value == high and within[-1] == ")":
        rule = _range(within)
    else:
        return value
    raise ValueError(f"{name} must be {rule}, got {value!r}" + (f"; {hint}" if hint else ""))


def _range(within: str) -> str:
    """A range in words."""
    low, high = (end.strip() for end in within[1:-1].split(","))
    if high != "inf":
        return f"in {within}"
    if low == "-inf":
        return "finite"
    at_least = f"at least {low}" if within[0] == "[" else f"above {low}"
    return "positive" if within == "(0, inf)" else at_least


def make(known: Mapping[str, Callable], section: Mapping[str, Any], what: str, *args: Any) -> Any:
    """Calls the function that a section names, with the section's options.

    Args:
        known: functions by name.
        section: `{"name": ..., **options}`.
        what: what the section describes, such as "schedule", for messages.
        *args: passed on, before the options.

    Returns:
        `known[section["name"]](*args, **options)`.

    Raises:
        ValueError: a section without a name, an unknown name, or an unknown option.
    """
    options = dict(section)
    if "name" not in options:
        raise ValueError(f"{what} needs a name, one of {', '.join(known)}, got {options}")
    function = lookup(known, options.pop("name"), what)
    if args:  # which are no options
        function = functools.partial(function, *args)
    return function(**check_options(function, options, what))


def parse_options(text: str | Iterable[str], what: str) -> dict[str, Any]:
    """Reads options written as `name=value,name=value`.

    Args:
        text: the options, or a list of single ones. A comma inside brackets belongs to the value.
        what: where they come from, such as "--solver_options", for the message.

    Returns:
        Values by name: Python literals where they can be read as such (numbers, True, None,
        tuples), inf and nan, else strings.

    Raises:
        ValueError: a part without a name or without `=`.
    """
    parts = text.split(",") if isinstance(text, str) else text
    options = {}
    for part in _join_brackets(parts):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals):
            raise ValueError(f"{what} must be like name=value,name=value, got {part!r}")
        options[name] = parse_value(value)
    return options


def parse_value(text: str) -> Any:
    """Returns a literal such as `0.2`, `True`, `(1, 2)` or `inf` as its value, other text as is."""
    for read in (ast.literal_eval, float):
        try:
            return read(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def as_whole(value: Any) -> Any:
    """Returns a number like 2.0 as 2, and anything else as it is."""
    number = _scalar(value)
    is_whole = isinstance(number, numbers.Real) and not isinstance(number, numbers.Integral)
    return int(number) if is_whole and float(number).is_integer() else value


def whole_number(text: str) -> int:
    """Reads a whole number, which may be written 2.0 or 1e3.

    Raises:
        ValueError: it is none.
    """
    number = as_whole(parse_value(text))
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{text!r} is no whole number")
    return number


def is_unicode(text: str) -> bool:
    """Whether a text is of whole characters; what the shell or JSON hands over need not be."""
    return text.isascii() or not any(0xD800 <= ord(character) < 0xE000 for character in text)


def few(names: Iterable[str]) -> str:
    """Returns the first five names, for a message."""
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _scalar(value: Any) -> Any:
    """Scalars of numpy and JAX as Python's; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _kinds(annotation: Any) -> Collection[Any]:
    """The types that an annotation allows."""
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else [annotation]


def _misfit(value: Any, kinds: Collection[Any]) -> str | None:
    """What a value must be for the types allowed; None where it is, or nothing is known.

    A whole number may be written 2.0; a bool is no number.
    """
    value = _scalar(value)
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    fits = {
        float: number and not math.isnan(value),
        int: number and isinstance(as_whole(value), numbers.Integral),
        bool: isinstance(value, bool),
        str: isinstance(value, str),
        Callable: callable(value),
        type(None): value is None,
    }
    if not kinds or any(fits.get(kind, True) for kind in kinds):
        return None
    words = {float: "a number", int: "a whole number", bool: "True or False", str: "a text"}
    words[Callable] = "a function"
    return " or ".join(words.get(kind, "None") for kind in kinds)


def _join_brackets(parts: Iterable[str]) -> Iterator[str]:
    """Yields the parts that are not blank, joining again what was split inside brackets."""
    open_part = ""
    for part in parts:
        open_part += part
        if sum(map(open_part.count, "([{")) > sum(map(open_part.count, ")]}")):
            open_part += ","
        else:
            if open_part.strip():
                yield open_part
            open_part = ""
    if open_part:
        yield open_part.removesuffix(",")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the nearest of the known names in brackets, for a message; "" if none is near."""
    nearest = {one.casefold(): one for one in map(str, known)}
    close = difflib.get_close_matches(str(name).casefold(), list(nearest), 1)
    return f" (did you mean {nearest[close[0]]!r}?)" if close else ""
