"""The last entry that was acknowledged to a server, in a small file beside its home: a database that does not have it
was restored from an older backup.

The file is written over with every acknowledgement and never synced: what a loss of power leaves of it is older than
what the database has, or nothing, and both are fine.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from perdure.model import Entry, Frozen

SIZE_BYTES = 512


class Acknowledged(Frozen, frozen=True, kw_only=True):
    lineage: str  # of the log
    run_id: str
    branch: int
    seq: int
    hash: str


class Mark:
    """Of one server. The file is made with the first entry."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1

    def read(self) -> Acknowledged | None:
        try:
            return msgspec.json.decode(self.path.read_bytes().rstrip(b" \n\0"), type=Acknowledged)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def write(self, lineage: str, entry: Entry) -> None:
        last = Acknowledged(lineage=lineage, run_id=entry.run_id, branch=entry.branch, seq=entry.seq, hash=entry.hash)
        content = msgspec.json.encode(last)
        if len(content) < SIZE_BYTES:
            if self._file < 0:
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._file, content.ljust(SIZE_BYTES - 1) + b"\n", 0)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
