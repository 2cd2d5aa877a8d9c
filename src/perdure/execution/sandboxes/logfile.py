"""The log file of one sandbox: appended by the node, read by ``logs`` and by attached terminals.

It is the one buffer of the main process's output: whoever looks on reads the file, at its own pace.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

from perdure.errors import ProtocolError
from perdure.formats import logs

READ_BYTES = 1 << 18

_log = logging.getLogger(__name__)


class Watch:
    """Tells waiters that something changed: take ``next``, look, then wait for what you took."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def next(self) -> asyncio.Event:
        return self._event

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()


class Place(NamedTuple):
    """A byte's: the offset in the file of the record that has it, and how many of that record's bytes come before; how
    much was written before it; and where in the process's output that is."""

    at: int
    skip: int
    written: int
    positions: dict[int, int]


class LogFile:
    """``positions`` are the main process's output offsets (stdout, stderr) up to which the file has everything."""

    def __init__(self, path: Path) -> None:
        """Open it, making it if need be; a record that was cut off by a crash is removed. A damaged file is kept beside
        it, as ``log.damaged``: here only what comes before the damage goes on."""
        self.path = path
        self.changed = Watch()
        self.positions = {logs.STDOUT: 0, logs.STDERR: 0}
        whole, is_damaged = self._scan()
        if is_damaged:
            _log.warning("%s is damaged after %d bytes; all of it is kept in %s.damaged", path, whole, path)
            path.replace(f"{path}.damaged")
            with open(f"{path}.damaged", "rb") as old, path.open("wb") as new:  # noqa: PTH123
                new.write(old.read(whole))
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, whole)
        self.size = whole

    def _scan(self) -> tuple[int, bool]:
        """(how many bytes read as whole records, whether the next ones are none at all)."""
        if not self.path.exists():
            return 0, False
        decoder, whole = logs.Decoder(), 0
        try:
            with self.path.open("rb") as file:
                while data := file.read(READ_BYTES):
                    for record in decoder.feed(data):
                        whole += logs.HEADER_BYTES + len(record.data)
                        if record.stream == logs.POSITION:
                            self.positions = logs.decode_position(record.data)
                        else:
                            self.positions[record.stream] += len(record.data)
        except ProtocolError:
            return whole, True
        return whole, False

    def restart(self, stdout: int = 0, stderr: int = 0) -> None:
        """What is appended from now on is the process's output from these offsets on."""
        self.positions = {logs.STDOUT: stdout, logs.STDERR: stderr}
        self._write(logs.encode_position(stdout, stderr, time.time_ns()))

    def append(self, stream: int, data: bytes) -> None:
        """Raises OSError (a full disk); then nothing of it counts as written."""
        self._write(logs.encode(stream, time.time_ns(), data))
        self.positions[stream] += len(data)

    def _write(self, record: bytes) -> None:
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self.size += len(record)
        self.changed.notify()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    async def read(
        self, offset: int, more: Callable[[], bool], *, positions: bool = False
    ) -> AsyncIterator[logs.LogRecord]:
        """Records from the file offset on; at the end it waits for new ones while ``more()``.

        ``changed`` must be notified when ``more`` becomes false. positions: their records, too.
        """
        decoder = logs.Decoder()
        with self.path.open("rb") as file:
            file.seek(offset)
            while True:
                changed, live = self.changed.next, more()
                while data := file.read(READ_BYTES):
                    for record in decoder.feed(data):
                        if positions or record.stream != logs.POSITION:
                            yield record
                if not live:
                    return
                await changed.wait()

    def place(self, offset: int | None = None, *, upto: int | None = None, skip: int = 0) -> Place:
        """Where byte ``offset`` of all that was written stands (beyond the end: the end); or byte ``skip`` of the
        record at ``upto``."""
        at, written, positions = 0, 0, {logs.STDOUT: 0, logs.STDERR: 0}
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while (header := logs.header(file.read(logs.HEADER_BYTES))) is not None:
                stream, length = header
                is_there = at + logs.HEADER_BYTES + length <= size
                if is_there and stream == logs.POSITION and (upto is None or at < upto):
                    positions = logs.decode_position(file.read(length))
                elif is_there and (at < upto if upto is not None else written + length <= (offset or 0)):
                    file.seek(length, os.SEEK_CUR)
                    positions[stream] += length
                    written += length
                else:
                    skip = skip if offset is None else max(offset - written, 0) if is_there else 0
                    if stream != logs.POSITION:
                        positions[stream] += skip
                    return Place(at, skip, written + skip, positions)
                at += logs.HEADER_BYTES + length
        return Place(at, 0, written, positions)

    def tail(self, lines: int) -> tuple[int, int]:
        """Where the last ``lines`` lines begin: the file offset of a record, and how many bytes of its data to skip."""
        ends: list[tuple[int, int]] = []  # (offset, line ends in the record's data)
        decoder, at, last = logs.Decoder(), 0, b"\n"
        with self.path.open("rb") as file:
            while data := file.read(READ_BYTES):
                for record in decoder.feed(data):
                    if record.stream != logs.POSITION:
                        ends.append((at, record.data.count(b"\n")))
                        last = record.data[-1:]
                    at += logs.HEADER_BYTES + len(record.data)
            wanted = lines + (
                last == b"\n"
            )  # the line before the first wanted one ends with the wanted-th "\n" from the end
            if lines <= 0:
                return at, 0
            for offset, count in reversed(ends):
                if count >= wanted:
                    file.seek(offset)
                    (record, *_) = logs.Decoder().feed(file.read(logs.HEADER_BYTES + logs.DATA_MAX))
                    pieces = record.data.split(b"\n")
                    return offset, len(record.data) - len(b"\n".join(pieces[-wanted:]))
                wanted -= count
        return 0, 0
