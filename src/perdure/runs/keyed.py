"""Which calls the log of a live run has, so that a new one is known to be new without a question to the database.

Begun when a worker reads the log, and kept up with what the run writes. Of calls that have ended only the key is kept:
they are asked again seldom, and then the database is asked. Model calls are the gateway's, and are not in it.
"""

from __future__ import annotations

from collections.abc import Iterable

from perdure.model import Entry

ENDS = frozenset(("step.result", "wait.completed", "emit", "value", "message", "note", "fork"))


class Keyed:
    """``of`` answers once ``complete`` is True."""

    def __init__(self) -> None:
        self.complete = False
        self._open: dict[str, dict[int, Entry]] = {}  # by key and seq
        self._ended: set[str] = set()

    def add(self, entries: Iterable[Entry]) -> list[list[Entry]]:
        """More entries of the run's branch; the same ones may come twice. Returns the calls that they end."""
        ended = []
        for entry in entries:
            key = entry.key
            if key is None or key in self._ended:
                continue
            if entry.kind in ENDS:
                self._ended.add(key)
                ended.append([*self._open.pop(key, {}).values(), entry])
            else:
                self._open.setdefault(key, {})[entry.seq] = entry
        return ended

    def of(self, key: str) -> list[Entry] | None:
        """The entries of a call, oldest first; None: ask the database."""
        if not self.complete or key in self._ended:
            return None
        found = self._open.get(key)
        return [found[seq] for seq in sorted(found)] if found else []
