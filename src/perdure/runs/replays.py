"""What a machine asked again after a loss, and what became of it: for ``perdure show``, in one entry.

In memory until the program says something new, or the run moves on: then it is written with that, for nothing.
"""

from __future__ import annotations

from typing import Any

from perdure.context.log import NewEntry
from perdure.model import Entry

SHOWN = 20  # of each: the entry is to stay small
# What a call is, by the kind of its first entry; with the kinds that answer it.
ANSWERS = {
    "model.intent": ("turns", ("model.committed", "model.aborted")),
    "step.intent": ("steps", ("step.result",)),
    "wait.started": ("waits", ("wait.completed",)),
}


class Replay:
    """The tail replay of one epoch."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._counts = dict.fromkeys(("turns", "steps", "waits", "others"), 0)
        self._answered: list[dict[str, Any]] = []
        self._again: list[dict[str, Any]] = []
        self._is_told = True

    def saw(self, key: str, entries: list[Entry], epoch: int) -> None:
        """A call was asked that the log has entries of."""
        first = entries[0]
        if first.epoch >= epoch or key in self._seen:
            return
        self._seen.add(key)
        what, ends = ANSWERS.get(first.kind, ("others", (first.kind,)))
        if first.kind == "wait.started" and not any(entry.kind in ends for entry in entries):
            return  # it waits on, as it did
        self._is_told = False
        end = next((entry for entry in reversed(entries) if entry.kind in ends), None)
        shown = {"call": what.removesuffix("s"), "key": key, "seq": (end or first).seq}
        if first.kind == "step.intent":
            shown["name"] = first.payload.get("name", "")
        if end is None:
            shown["why"] = WHY[what]
            self._again = [*self._again, shown][:SHOWN]
            return
        self._counts[what] += 1
        if what != "others":
            self._answered = [*self._answered, shown][:SHOWN]

    def entries(self) -> list[NewEntry]:
        """What is not told yet: one entry, or none."""
        payload = {**self._counts, "answered": self._answered, "again": self._again}
        return [] if self._is_told else [NewEntry(kind="replayed", payload=payload)]

    def told(self) -> None:
        """It was written."""
        self._counts = dict.fromkeys(self._counts, 0)
        self._answered, self._again, self._is_told = [], [], True


WHY = {
    "turns": "the log has no complete answer",
    "steps": "its machine was lost before its result was recorded",
}
