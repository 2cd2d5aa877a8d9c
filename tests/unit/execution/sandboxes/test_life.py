"""What happened to a sandbox is known at once, and written down as soon as that is possible."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import NoSpace
from perdure.execution.sandboxes.record import Folder, Record
from perdure.execution.sandboxes.resuming import refusal
from perdure.execution.sandboxes.rooms import Rooms
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.model import SandboxSpec, SandboxState


class FullDisk(Folder):
    """A folder on a disk that is full until ``room``."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.room = False
        self.saved = asyncio.Event()

    def save(self, record: Record) -> None:
        if not self.room:
            raise NoSpace("no space left")
        super().save(record)
        self.saved.set()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
async def sandbox(tmp_path: Path, told: list[str]) -> Any:
    record = Record(
        id="0123456789ab", name="box", spec=SandboxSpec(image="i"), image_digest="", created=1.0,
        state=SandboxState.RUNNING,
    )  # fmt: skip
    Folder(tmp_path).save(record)
    values: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Rooms))
    values |= {"emit": lambda kind, *_: told.append(kind), "named_by_others": lambda *_: False}
    rooms = Rooms(**values)
    return Sandbox(rooms, FullDisk(tmp_path), record)


async def test_no_folder_of_a_machine_has_a_name_twice(sandbox: Any) -> None:
    """Not after resumes that failed either: the record says nothing of these."""
    assert [sandbox.fresh_generation() for _ in range(3)] == [1, 2, 3]
    sandbox.folder.room = True
    sandbox.save(generation=7)
    assert sandbox.fresh_generation() == 8


async def test_an_exit_on_a_full_disk_is_told_and_written_later(sandbox: Any, told: list[str]) -> None:
    waiting = asyncio.create_task(sandbox.wait_exited())
    await asyncio.sleep(0)
    sandbox.exited("exited", "exit", "", 3)
    assert (await asyncio.wait_for(waiting, 10)).exit_status == 3
    assert told == ["sandbox.exited"]
    assert sandbox.folder.load().state is SandboxState.RUNNING
    sandbox.folder.room = True
    await asyncio.wait_for(sandbox.folder.saved.wait(), 10)
    kept = sandbox.folder.load()
    assert (kept.state, kept.exit_status) == (SandboxState.EXITED, 3)


async def test_what_is_begun_on_a_full_disk_is_refused(sandbox: Any) -> None:
    with pytest.raises(NoSpace):
        sandbox.move("suspend")
    assert sandbox.state is SandboxState.RUNNING


async def test_a_refused_resume_leaves_what_was(sandbox: Any) -> None:
    sandbox.folder.room = True
    sandbox.exited("exited", "exit", "", 3)
    sandbox.move("resume")
    sandbox.happened(refusal(sandbox.record))
    assert (sandbox.state, sandbox.record.exit_status) == (SandboxState.EXITED, 3)


async def test_a_start_that_failed_did_not_run(sandbox: Any) -> None:
    """What its record says of when it started is of the time before."""
    sandbox.folder.room = True
    sandbox.save(started=5.0)
    sandbox.exited("exited", "exit", "", 3)
    assert sandbox.record.started == 5.0
    sandbox.move("start")
    sandbox.exited("died", "start-failed", "no such command", 127)
    assert (sandbox.record.started, sandbox.record.exit_status) == (None, 127)


class Obedient:
    """The main process of a sandbox, which exits at the first signal."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.process = self
        self._sandbox = sandbox

    async def signal(self, number: int) -> None:
        self._sandbox.exited("exited", self._sandbox.stopping, "", 128 + number)


async def test_a_stop_waits_for_a_start_that_has_said_nothing_yet(
    sandbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sandbox that has exited, as its state says until its machine is about to be made."""
    sandbox.folder.room = True
    sandbox.save(state=SandboxState.EXITED)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def start(life: Any, progress: object) -> None:
        begun.set()
        await go_on.wait()
        life.move("start")
        life.session, life.main = object(), Obedient(life)
        life.happened("started")

    monkeypatch.setattr("perdure.execution.sandboxes.starting.start", start)
    starting = asyncio.create_task(sandbox.start())
    await begun.wait()
    stopping = asyncio.create_task(sandbox.stop(10.0, "TERM"))
    for _ in range(10):
        await asyncio.sleep(0)
    go_on.set()
    async with asyncio.timeout(10):
        assert (await starting).state is SandboxState.RUNNING
        ended = await stopping
    assert (ended.state, ended.cause) == (SandboxState.EXITED, "stopped")
