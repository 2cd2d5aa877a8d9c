"""The audit: who did what to the node, as JSON lines in ``HOME/log/audit.jsonl`` (docs/formats/records.md).

A line is written, whole, before the client hears how it went. It has no secrets: no bodies, no queries, no headers.
On a full disk the operation goes on all the same: what removes something must work there above all, and a guest that
fills a disk must not be able to stop everybody. The next line that can be written says how many were lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
from aiohttp import web

from perdure.execution.sandboxes.logfile import Watch
from perdure.model import AuditEntry
from perdure.node.answers import NDJSON, number, stream
from perdure.node.following import Handler

FILE_BYTES = 16 << 20
FILES = 5  # the newest and those before it
STRANGERS_PER_S = 5  # refused strangers that get a line of their own; more are counted
READ_BYTES = 1 << 16

_log = logging.getLogger(__name__)


class Audit:
    """Appends; one of a node. ``file_bytes``: a file that has more is put aside."""

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        self.path = folder / "audit.jsonl"
        self._file_bytes, self._files = file_bytes, files
        self._fd = -1
        self._size = 0
        self._lost = 0
        self._since, self._strangers = 0.0, 0  # those since then, in this second
        self._more = 0  # of them that have no line yet
        self._last_stranger: dict[str, Any] = {}
        self._telling: asyncio.TimerHandle | None = None
        self.happened = Watch()

    def write(self, **facts: Any) -> None:
        """One line. Nothing is raised: what cannot be written is counted, and told by the next line."""
        entry = AuditEntry(time=time.time(), lost=self._lost, **facts)
        line = msgspec.json.encode(entry) + b"\n"
        try:
            self._append(line)
        except OSError as error:
            if not self._lost:
                _log.error("the audit cannot be written: %s", error)
            self._lost += 1
            self.close()
            return
        self._lost = 0
        self.happened.notify()

    def write_stranger(self, **facts: Any) -> None:
        """Somebody was refused who is nobody here. Many of them get a line together, so that no flood of them rotates
        away what is worth reading."""
        now = time.monotonic()
        if now - self._since >= 1:
            self._since, self._strangers = now, 0
        self._strangers += 1
        if self._strangers <= STRANGERS_PER_S:
            self.write(**facts)
            return
        self._last_stranger = facts
        self._more += 1
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(1, self._tell_strangers)

    def _tell_strangers(self) -> None:
        self._telling = None
        if self._more:
            more, self._more = self._more, 0
            self.write(**self._last_stranger | {"times": more})

    def _append(self, line: bytes) -> None:
        if self._fd >= 0 and self._size + len(line) > self._file_bytes:
            self._rotate()
        if self._fd < 0:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._fd).st_size
            if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
                line = b"\n" + line  # a crash of the host cut the last one off: this one is not to be lost with it
        written = os.write(self._fd, line)
        if written != len(line):  # the disk has just become full: half a line is none
            os.ftruncate(self._fd, self._size)
            raise OSError(f"only {written} of {len(line)} bytes were written")
        self._size += written

    def _rotate(self) -> None:
        self.close()
        for number_ in range(self._files - 1, 0, -1):
            older = self._numbered(number_)
            newer = self._numbered(number_ - 1)
            if newer.exists():
                newer.replace(older)

    def _numbered(self, number_: int) -> Path:
        return self.path if number_ == 0 else self.path.with_name(f"{self.path.name}.{number_}")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def end(self) -> None:
        """The daemon ends."""
        if self._telling is not None:
            self._telling.cancel()
        self._tell_strangers()
        self.close()

    async def read(self, *, since: float | None, follow: bool) -> AsyncIterator[AuditEntry]:
        """Oldest first; with ``follow`` also those to come."""
        former = [path for number_ in range(self._files - 1, 0, -1) if (path := self._numbered(number_)).exists()]
        for path in former:
            for entry in await asyncio.to_thread(_entries, path, since):
                yield entry
        while True:
            happened = self.happened.next
            try:
                file = self.path.open("rb")
            except FileNotFoundError:
                file = None
            if file is not None:
                with file:
                    while True:
                        happened = self.happened.next
                        for entry in _parsed(file, since):
                            yield entry
                        if not follow:
                            return
                        if self._is_rotated(file):
                            for entry in _parsed(file, since):  # what came between the last look and its end
                                yield entry
                            break
                        await happened.wait()
            elif not follow:
                return
            else:
                await happened.wait()

    def _is_rotated(self, file: IO[bytes]) -> bool:
        try:
            return self.path.stat().st_ino != os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            return True


def _entries(path: Path, since: float | None) -> list[AuditEntry]:
    try:
        with path.open("rb") as file:
            return list(_parsed(file, since))
    except FileNotFoundError:
        return []  # rotated away in this moment


def _parsed(file: IO[bytes], since: float | None) -> Iterator[AuditEntry]:
    """The whole lines from here on; a line that is damaged is left out."""
    while line := file.readline():
        if not line.endswith(b"\n"):
            file.seek(-len(line), os.SEEK_CUR)
            return
        try:
            entry = msgspec.json.decode(line, type=AuditEntry)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if since is None or entry.time >= since:
            yield entry


class AuditApi:
    """Handlers. ``follows``: around the one that does (``Following``)."""

    def __init__(self, audit: Audit, follows: Callable[[Handler], Handler]) -> None:
        self._audit, self._follows = audit, follows

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/system/audit", self._follows(self.read))]

    async def read(self, request: web.Request) -> web.StreamResponse:
        since, follow = number(request, "since"), request.query.get("follow") == "1"
        response = await stream(request, NDJSON)
        async for entry in self._audit.read(since=since, follow=follow):
            await response.write(msgspec.json.encode(entry) + b"\n")
        return response
