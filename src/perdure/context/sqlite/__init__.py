"""The context log on SQLite. ``open(path)`` is the only name that others use."""

from __future__ import annotations

from pathlib import Path

from perdure.context.faults import Faults
from perdure.context.log import ContextLog


async def open(path: Path, *, faults: Faults | None = None) -> ContextLog:
    """Open or make the log in the file ``path``. faults: it is to die at a write.

    ``AlreadyRunning``: another process has it open. ``NoRights``: it, or its folder, cannot be written.
    ``NoSpace``: the disk is full. ``ProtocolError``: not a context log, or one of a newer version.
    """
    from perdure.context.sqlite.database import SqliteDatabase
    from perdure.context.stored import StoredLog

    return StoredLog(await SqliteDatabase.open(path, faults))
