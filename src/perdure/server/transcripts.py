"""What the workers of a run printed, one after the other: files of its newest bytes.

A worker prints nothing while it lives through its log once more (``replay.outlet``), so what one prints goes on where
the one before ended. Only where there is no transcript (another server has it, or a fork begins) it says all.

The files, each of at most ``PART_BYTES``, are ``LIFE-OFFSET``: the offset of its first byte. The newest two are kept.
LIFE is the worker that the transcript began with. They are read, written and removed in the event loop alone, so nobody
sees a transcript that is half removed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

PART_BYTES = 1 << 20
READ_BYTES = 1 << 16


class Transcript:
    """``begin`` and ``end``: the offsets of the first byte that is kept, and of the next one."""

    def __init__(self, folder: Path, life: str) -> None:
        """What is in the folder goes on; ``life``: of one that begins."""
        self._folder = folder
        self._parts = sorted((_offset(path), path) for path in folder.glob("*-*")) if folder.is_dir() else []
        self.life = self._parts[-1][1].name.rpartition("-")[0] if self._parts else life
        self.begin = self._parts[0][0] if self._parts else 0
        self.end = self._parts[-1][0] + self._parts[-1][1].stat().st_size if self._parts else 0
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Set when there is more, or nothing more to come: take it, look, then wait for it."""
        return self._changed

    def notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def append(self, data: bytes) -> None:
        """OSError: the disk is full; then some of it may be lost."""
        while data:
            if not self._parts or self.end - self._parts[-1][0] >= PART_BYTES:
                self._begin_part()
            offset, path = self._parts[-1]
            piece = data[: PART_BYTES - (self.end - offset)]
            with path.open("ab") as file:
                file.write(piece)
            self.end += len(piece)
            data = data[len(piece) :]
        self.notify()

    def _begin_part(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._parts.append((self.end, self._folder / f"{self.life}-{self.end}"))
        while len(self._parts) > 2:
            self._parts.pop(0)[1].unlink(missing_ok=True)
            self.begin = self._parts[0][0]

    def read(self, offset: int) -> tuple[int, bytes]:
        """(offset, some bytes from there on): later than asked where they are not kept any more."""
        offset = max(offset, self.begin)
        for first, path in reversed(self._parts):
            if first <= offset:
                with path.open("rb") as file:
                    file.seek(offset - first)
                    return offset, file.read(READ_BYTES)
        return offset, b""

    def tail(self, lines: int) -> int:
        """The offset that the last ``lines`` lines begin at."""
        if lines <= 0:
            return self.end
        kept = b"".join(path.read_bytes() for _, path in self._parts)
        at = len(kept) - 1 if kept.endswith(b"\n") else len(kept)
        for _ in range(lines):
            at = kept.rfind(b"\n", 0, at)
            if at < 0:
                return self.begin
        return self.begin + at + 1


def _offset(path: Path) -> int:
    return int(path.name.rpartition("-")[2])
