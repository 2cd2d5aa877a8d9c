"""A run whose log is looked at as it goes on: what ``bench_recovery`` and ``bench_chain`` measure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from workload import DISK_MIB, IMAGE, MEMORY_MIB

from perdure.cli.perdure import _daemons
from perdure.client.server import ServerClient
from perdure.host.paths import Home
from perdure.model import Entry, RunInfo


class Subject:
    """A run on the snapshot road, in the guest of the other figures, and how far its log was looked at."""

    def __init__(self, server: ServerClient, source: str, function: str, idle_grace_s: float, **given: int) -> None:
        policy = {"idle_grace_s": idle_grace_s}
        size = {"memory_mib": MEMORY_MIB, "disk_mib": DISK_MIB}
        what = {"source": source, "file": "subject.py", "function": function, "input": given}
        self._server = server
        self.id = server.start(**what, **size, image=IMAGE, policy=policy).id  # type: ignore[arg-type]  # by name
        self.seq = 0

    def reaches(self, kind: str, name: str = "") -> Entry:
        """The next entry of a kind. Raises RuntimeError when the run ends before it."""
        for entry in self._server.entries(self.id, after=self.seq, follow=True, kind=kind):
            self.seq = entry.seq
            if not name or entry.payload["name"] == name:
                return entry
        raise RuntimeError(f"run {self.id} ended before {kind}: {self.info().error}")

    def goes_on(self, act: Callable[[], object]) -> dict[str, float]:
        """Seconds from ``act`` to each kind of entry, up to the next call: the entries' own times, by this clock."""
        before, begun = self.seq, time.time()
        act()
        self.reaches("emit", "on")
        entries = self._server.entries(self.id, after=before)
        return {entry.kind: entry.time - begun for entry in entries if entry.seq <= self.seq}

    def signal(self, value: Any = None) -> None:
        self._server.signal(self.id, "go", value)

    def info(self) -> RunInfo:
        return self._server.get(self.id)

    def sandbox(self) -> str:
        return self.info().sandbox_id

    def verify(self) -> None:
        """Its log, by its chain. Raises what the server finds wrong."""
        self._server.verify(self.id)

    def end(self) -> None:
        self._server.cancel(self.id, force=True)


@contextlib.contextmanager
def served(home: Home) -> Iterator[ServerClient]:
    """A server with an empty log."""
    for path in home.root.glob("perdure.db*"):
        path.unlink()
    _daemons.start_server(home)
    try:
        yield ServerClient(home)
    finally:
        _daemons._stop_server(home)
