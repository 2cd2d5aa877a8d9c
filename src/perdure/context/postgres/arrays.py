"""Columns of rows as PostgreSQL's arrays in binary, ready to be sent. Pure.

The layout is that of ``array_send`` (src/backend/utils/adt/arrayfuncs.c): how many dimensions, whether there may be
NULLs, the type of the elements, then size and first index of each dimension; each element is its length (-1: NULL) and
its bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

_HEAD = struct.Struct("!iiIii")
_LENGTH = struct.Struct("!i")
_NULL = _LENGTH.pack(-1)
_OIDS = {"text": 25, "bytea": 17, "bigint": 20, "int": 23, "float8": 701}  # pg_type.dat


def _head(kind: str, size: int) -> bytes:
    return _HEAD.pack(1, 1, _OIDS[kind], size, 1)


def _bytes(kind: str, values: Iterable[bytes | None]) -> bytes:
    parts = [_NULL if value is None else _LENGTH.pack(len(value)) + value for value in values]
    return _head(kind, len(parts)) + b"".join(parts)


def _text(values: Sequence[str | None]) -> bytes:
    return _bytes("text", [None if value is None else value.encode() for value in values])


def _numbers(kind: str, code: str, values: Sequence[Any]) -> bytes:
    if None in values:
        return _bytes(kind, [None if value is None else struct.pack("!" + code, value) for value in values])
    fields = [struct.calcsize("!" + code)] * (2 * len(values))
    fields[1::2] = values
    return _head(kind, len(values)) + _layout(code, len(values)).pack(*fields)


@cache
def _layout(code: str, size: int) -> struct.Struct:
    return struct.Struct("!" + ("i" + code) * size)


_ENCODERS: dict[str, Callable[[Sequence[Any]], bytes]] = {
    "text": _text,
    "bytea": lambda values: _bytes("bytea", values),
    "bigint": lambda values: _numbers("bigint", "q", values),
    "int": lambda values: _numbers("int", "i", values),
    "float8": lambda values: _numbers("float8", "d", values),
}


def encoded(kinds: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[bytes]:
    """One array per column. kinds: the types of the columns. ``struct.error``: a number that its type does not hold."""
    return [_ENCODERS[kind](column) for kind, column in zip(kinds, zip(*rows, strict=True), strict=True)]
