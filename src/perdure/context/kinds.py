"""The kinds of entries. Their payloads: ``docs/formats/context-log.md``. Readers skip kinds that they do not know."""

from __future__ import annotations

import difflib

from perdure.context.points import POINTS
from perdure.errors import InvalidValue

KINDS = tuple(point for point in POINTS if not point.startswith(("row.", "file.")))  # a write is named by its entries


def is_known(kind: str) -> bool:
    """Whether it is one of them, or with a dot at its end how some of them begin."""
    return kind in KINDS or (kind.endswith(".") and any(known.startswith(kind) for known in KINDS))


def unknown(kind: str) -> InvalidValue:
    """No entry has this kind."""
    beginnings = dict.fromkeys(known.partition(".")[0] + "." for known in KINDS if "." in known)
    near = difflib.get_close_matches(kind, (*beginnings, *KINDS), n=1)
    meant = f"Did you mean {near[0]}? " if near else ""
    known = ", ".join((*beginnings, *(known for known in KINDS if "." not in known)))
    return InvalidValue(f"no such kind of entry: {kind[:60]!r}", hint=f"{meant}Known are {known}.")
