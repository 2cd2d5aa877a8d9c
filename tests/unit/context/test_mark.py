"""A database that was restored from an older backup is not written to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from perdure.context import sqlite
from perdure.context.log import ContextLog, NewEntry
from perdure.errors import Conflict

NOTE = [NewEntry(kind="note", payload=1)]


async def opened(folder: Path) -> ContextLog:
    log = await sqlite.open(folder / "log.db")
    try:
        await log.remember(folder / "acknowledged")
    except Conflict:
        await log.close()
        raise
    return log


async def filled(folder: Path) -> None:
    """A log with two entries, and a backup of it with one."""
    log = await opened(folder)
    await log.create("run", {})
    await log.append("run", NOTE, epoch=1)
    await log.close()
    shutil.copy(folder / "log.db", folder / "backup.db")
    log = await opened(folder)
    await log.append("run", NOTE, epoch=1)
    await log.close()


async def test_what_was_acknowledged_is_there_again(tmp_path: Path) -> None:
    for _ in range(2):
        log = await opened(tmp_path)
        if not await log.heads():
            await log.create("run", {})
        await log.append("run", NOTE, epoch=1)
        await log.close()


async def test_an_older_backup_is_refused_until_somebody_says_that_it_is_meant(tmp_path: Path) -> None:
    await filled(tmp_path)
    shutil.copy(tmp_path / "backup.db", tmp_path / "log.db")
    for _ in range(2):
        with pytest.raises(Conflict, match=r"entry 2 of run run, branch 1 was written.*ends at entry 1") as refused:
            await opened(tmp_path)
    assert str(tmp_path / "acknowledged") in refused.value.hint
    (tmp_path / "acknowledged").unlink()
    await (await opened(tmp_path)).close()


async def test_a_backup_that_others_went_on_with_is_refused(tmp_path: Path) -> None:
    await filled(tmp_path)
    shutil.copy(tmp_path / "backup.db", tmp_path / "log.db")
    other = await sqlite.open(tmp_path / "log.db")
    for _ in range(3):
        await other.append("run", NOTE, epoch=1)
    await other.close()
    with pytest.raises(Conflict, match="has another one there"):
        await opened(tmp_path)


async def test_an_empty_log_in_its_place_is_another_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await filled(tmp_path)
    (tmp_path / "log.db").unlink()
    log = await opened(tmp_path)
    assert "another log" in caplog.text
    await log.close()


@pytest.mark.parametrize("content", [b"", b'{"lineage": "', b"\0" * 512])
async def test_a_torn_mark_says_nothing(tmp_path: Path, content: bytes) -> None:
    await filled(tmp_path)
    (tmp_path / "acknowledged").write_bytes(content)
    await (await opened(tmp_path)).close()
