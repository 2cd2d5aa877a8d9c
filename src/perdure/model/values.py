"""What all values are made from: ids, and the base of what goes over wires."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec


def new_id() -> str:
    """A fresh id: 12 hex digits, like docker's short ids. Sandboxes, runs, waits and execs use it."""
    import secrets  # it brings hashes and random numbers, and no command line that only asks needs them

    return secrets.token_hex(6)


def is_id(text: str) -> bool:
    """Whether it has the shape of one."""
    return len(text) == 12 and all(digit in "0123456789abcdef" for digit in text)


class Frozen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the wire values: immutable, keyword-only, unknown fields ignored (newer peers may send more)."""


def settle(*kinds: Any) -> None:
    """Have msgspec learn these types (none: all structs that are defined by now), before threads use them.

    It learns a type when it is first used, and does not keep other threads out meanwhile: two that are first at the
    same moment end the process (SIGSEGV).
    """
    for kind in kinds or _below(msgspec.Struct):
        msgspec.json.Decoder(kind)


def _below(kind: type) -> Iterator[type]:
    known: type
    for known in kind.__subclasses__():
        yield known
        yield from _below(known)
