"""How waits end: the entries that say so. Pure."""

from __future__ import annotations

from typing import Any

from perdure.context.log import NewEntry
from perdure.runs.waits import SETS, Signal, Wait, Waits


def completion(waits: Waits, wait: Wait, outcome: dict[str, Any]) -> tuple[Wait | None, list[NewEntry]]:
    """The entries that end an open wait, and what the program goes on for: the wait, its set, or nothing yet.

    A set of ``any`` is over with its first part, one of ``all`` with its last; its own entry says which came, in order.
    """
    part = {"of": wait.of, "index": wait.index} if wait.of else {"order": wait.order} if wait.kind in SETS else {}
    done = {"wait": wait.id, "kind": wait.kind, **part, **outcome}
    entries = [NewEntry(kind="wait.completed", key=wait.key, payload=done)]
    whole = waits.find(wait.of) if wait.of else None
    if whole is None:
        return wait, entries
    if whole.kind == "all" and any(w.of == whole.id and w.id != wait.id for w in waits.open):
        return None, entries
    end = {"wait": whole.id, "kind": whole.kind, "order": [*whole.order, wait.index], "outcome": "completed"}
    end["at"] = outcome.get("at", 0.0)
    return whole, [*entries, NewEntry(kind="wait.completed", key=whole.key, payload=end)]


def taking(signal: Signal) -> dict[str, Any]:
    """The outcome of a wait that takes this signal."""
    return {"outcome": "completed", "value": signal.value, "at": signal.at, "signal": signal.id}
