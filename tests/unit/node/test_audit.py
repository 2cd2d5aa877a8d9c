"""The audit's file: rotation, damage, a full disk."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import stat
from pathlib import Path

from perdure.model import AuditEntry
from perdure.node.audit import Audit

DEADLINE_S = 30.0


def write(audit: Audit, ref: str) -> None:
    audit.write(request="r", phase="done", method="POST", route="/v1/x", ref=ref, status=200)


async def refs(audit: Audit, since: float | None = None) -> list[str]:
    return [entry.ref async for entry in audit.read(since=since, follow=False)]


async def test_it_is_rotated_and_read_as_one(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "log", file_bytes=1000, files=3)
    assert await refs(audit) == []
    for number in range(100):
        write(audit, str(number))
    kept = await refs(audit)
    assert kept == [str(number) for number in range(100)][-len(kept) :] and 10 < len(kept) < 40
    files = sorted(path.name for path in (tmp_path / "log").iterdir())
    assert files == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    for path in (tmp_path / "log").iterdir():
        assert path.stat().st_size <= 1000 and stat.S_IMODE(path.stat().st_mode) == 0o600
    audit.close()
    again = Audit(tmp_path / "log", file_bytes=1000, files=3)
    write(again, "next")
    assert (await refs(again))[-2:] == ["99", "next"]


async def test_who_follows_misses_nothing_when_it_is_rotated(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "log", file_bytes=2000, files=9)
    seen: list[str] = []

    async def follow() -> None:
        async for entry in audit.read(since=None, follow=True):
            seen.append(entry.ref)
            if entry.ref == "last":
                return

    following = asyncio.create_task(follow())
    for number in range(60):
        write(audit, str(number))
        if number % 7 == 0:
            await asyncio.sleep(0)
    write(audit, "last")
    await asyncio.wait_for(following, DEADLINE_S)
    assert seen == [*map(str, range(60)), "last"]


async def test_a_line_that_was_cut_off_costs_itself_only(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "log")
    write(audit, "one")
    write(audit, "two")
    audit.close()
    path = tmp_path / "log" / "audit.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    again = Audit(tmp_path / "log")
    assert await refs(again) == ["one"]
    write(again, "three")
    assert await refs(again) == ["one", "three"]


async def test_what_could_not_be_written_is_counted(tmp_path: Path) -> None:
    """A file that may not grow (RLIMIT_FSIZE), as on a full disk: nothing is raised, and half a line is none."""
    audit = Audit(tmp_path / "log")
    write(audit, "before")
    path = tmp_path / "log" / "audit.jsonl"
    usual, former = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, usual[1]))
        for number in range(3):
            write(audit, str(number))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        signal.signal(signal.SIGXFSZ, former)
    write(audit, "after")
    entries = [entry async for entry in audit.read(since=None, follow=False)]
    assert [(entry.ref, entry.lost) for entry in entries] == [("before", 0), ("after", 3)]
    assert all(json.loads(line) for line in path.read_text().splitlines())


async def test_a_moment_to_begin_with(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "log")
    write(audit, "one")
    (first,) = [entry async for entry in audit.read(since=None, follow=False)]
    assert isinstance(first, AuditEntry) and await refs(audit, first.time) == ["one"]
    assert await refs(audit, first.time + 1) == []


async def test_strangers_are_counted_together(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "log")
    for _ in range(1000):
        audit.write_stranger(request="r", phase="done", status=401)
    audit.end()
    told = [entry.times async for entry in audit.read(since=None, follow=False)]
    assert sum(told) == 1000 and len(told) < 20
    assert os.listdir(tmp_path / "log") == ["audit.jsonl"]  # noqa: PTH208
