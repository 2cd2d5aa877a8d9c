"""The values of Go's templates: what is true, how they are printed, and the functions that take them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Function = Callable[..., Any]

_NO_VALUE = "<no value>"


def is_true(value: Any) -> bool:
    """As Go has it: neither false, nor 0, nor nothing, nor empty."""
    return bool(value)


def printed(value: Any) -> str:
    """As Go prints it with %v."""
    if value is None:
        return _NO_VALUE
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{printed(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(printed, value)) + "]"
    return str(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(str(key), "")
        elif isinstance(value, list | tuple | str) and isinstance(key, int) and 0 <= key < len(value):
            value = value[key]
        else:
            raise ValueError(f"there is no {printed(key)} in it")
    return value


def _compared(test: Callable[[Any, Any], bool]) -> Function:
    def compare(first: Any, *others: Any) -> bool:
        if not others:
            raise ValueError("there is nothing to compare it with")
        return any(test(first, other) for other in others)

    return compare


_VERB = re.compile(r"%(-?\d*(?:\.\d+)?)([vsdqtfgx%])")


def _printf(form: str, *values: Any) -> str:
    left = list(values)

    def replace(match: re.Match[str]) -> str:
        width, verb = match.groups()
        if verb == "%":
            return "%"
        if not left:
            raise ValueError("too few values")
        value = left.pop(0)
        if verb == "q":
            return f"%{width}s" % json.dumps(printed(value), ensure_ascii=False)
        return f"%{width}{verb}" % value if verb in "dfgx" else f"%{width}s" % printed(value)

    text = _VERB.sub(replace, form)
    if left:
        raise ValueError("too many values")
    return text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _truncate(text: str, length: int) -> str:
    return text[:length]


def _pad(text: str, before: int, after: int) -> str:
    return " " * before + text + " " * after if text else ""


FUNCTIONS: Mapping[str, Function] = {
    # docker's
    "json": _json,
    "join": lambda values, between: between.join(map(printed, values)),
    "split": lambda text, between: text.split(between),
    "lower": lambda text: printed(text).lower(),
    "upper": lambda text: printed(text).upper(),
    "title": lambda text: " ".join(word[:1].upper() + word[1:] for word in printed(text).split(" ")),
    "pad": _pad,
    "truncate": _truncate,
    "println": lambda *values: " ".join(map(printed, values)) + "\n",
    # Go's
    "print": lambda *values: " ".join(map(printed, values)),
    "printf": _printf,
    "len": len,
    "index": _index,
    "slice": lambda value, start=0, end=None: value[start:end],
    "not": lambda value: not is_true(value),
    "and": lambda *values: values,
    "or": lambda *values: values,
    "eq": _compared(lambda one, other: bool(one == other)),
    "ne": lambda one, other: one != other,
    "lt": lambda one, other: one < other,
    "le": lambda one, other: one <= other,
    "gt": lambda one, other: one > other,
    "ge": lambda one, other: one >= other,
}

# what they do to the headings of a table, which are no values
HEADING_FUNCTIONS: Mapping[str, Function] = {
    **FUNCTIONS,
    "json": lambda value: value,
    "split": lambda text, between: [text],
    "join": lambda value, between: value,
    "lower": lambda text: text,
    "upper": lambda text: text,
    "title": lambda text: text,
    "truncate": lambda text, length: text,
    "index": lambda value, *keys: value,
    "len": lambda value: value,
}
