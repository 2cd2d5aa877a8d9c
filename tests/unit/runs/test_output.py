"""What a run's program wrote, followed by position through its sleeps, restores, recoveries and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from perdure.errors import Unavailable
from perdure.model import OutputPiece, RunState
from perdure.runs import output
from perdure.testing.house import House
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval


def two_waits() -> Steps:
    yield approval("One?")
    yield approval("Two?")
    yield Ask("complete", {"result": None})


class Reader:
    """Follows, and keeps what it was told."""

    def __init__(self, house: House, run_id: str, **where: Any) -> None:
        self.told: list[OutputPiece] = []
        self._more = asyncio.Event()
        self._task = asyncio.create_task(self._read(house, run_id, where))

    async def _read(self, house: House, run_id: str, where: dict[str, Any]) -> None:
        async with aclosing(house.engine.printed(run_id, live=True, **where)) as pieces:
            async for piece in pieces:
                self.told.append(piece)
                self._more.set()

    @property
    def text(self) -> bytes:
        return b"".join(piece.data for piece in self.told)

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(10):
            while text not in self.text:
                self._more.clear()
                await self._more.wait()

    async def ends(self) -> bytes:
        async with asyncio.timeout(20):
            await self._task
        return self.text


async def pieces(house: House, run_id: str, *where: Any, **how: Any) -> list[OutputPiece]:
    async with aclosing(house.engine.printed(run_id, *where, **how)) as found:
        return [piece async for piece in found]


async def test_it_is_followed_through_a_sleep_a_loss_and_the_end(house: House) -> None:
    run_id = await house.start(two_waits)
    await house.reaches(run_id, RunState.SUSPENDED)
    reader, sandbox = Reader(house, run_id), house.sandbox(run_id)
    await reader.until(b"output\n")
    await house.engine.approve(run_id, None, approved=True)
    await house.waits(run_id, "approval")
    house.machines.prints(sandbox, b"awake\n")
    await reader.until(b"awake\n")
    await house.reaches(run_id, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=True)
    assert await reader.ends() == b"output\nawake\n"
    assert [(piece.life, piece.offset, piece.at) for piece in reader.told] == [(sandbox, 0, 0), (sandbox, 7, 7)]


async def test_what_a_restored_machine_writes_again_is_told_with_where_it_is(house: House) -> None:
    run_id = await house.start(two_waits)
    await house.reaches(run_id, RunState.SUSPENDED)
    reader, sandbox = Reader(house, run_id), house.sandbox(run_id)
    await house.engine.approve(run_id, None, approved=True)
    await house.waits(run_id, "approval")
    house.machines.prints(sandbox, b"again\n")
    await reader.until(b"again\n")
    await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    await house.kill_machine(run_id)
    house.machines.prints(sandbox, b"again\n", at=7)  # as its log has it after a restore from the first snapshot
    await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    await reader.until(b"again\nagain\n")
    assert [(piece.offset, piece.at) for piece in reader.told] == [(0, 0), (7, 7), (13, 7)]
    assert [piece.data for piece in await pieces(house, run_id, sandbox, 13)] == [b"again\n"]


async def test_a_new_machine_is_a_new_life_and_told_from_its_beginning(house: House) -> None:
    run_id = await house.start(two_waits)
    await house.waits(run_id, "approval")
    former = house.sandbox(run_id)
    house.machines.prints(former, b"more\n")
    reader = Reader(house, run_id, life=former, offset=7)
    await reader.until(b"more\n")
    await house.machines.kill(former)
    if house.sandbox(run_id) == former:  # it had slept already
        await house.machines.remove(run_id)
        house.engine._runs[run_id].look()
    await reader.until(b"more\noutput\n")
    newest = reader.told[-1]
    assert newest.life == house.sandbox(run_id) != former and (newest.offset, newest.at) == (0, 0)


async def test_a_node_that_goes_away_is_asked_on_when_it_is_back(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "AGAIN_S", 0.01)
    run_id = await house.start(two_waits)
    await house.reaches(run_id, RunState.SUSPENDED)
    there, asked = house.machines.printed, list[int]()

    async def printed(sandbox_id: str, life: str = "", offset: int = 0, **how: Any) -> AsyncGenerator[OutputPiece]:
        asked.append(offset)
        async with aclosing(there(sandbox_id, life, offset, **how)) as pieces:
            async for piece in pieces:
                yield piece
                if len(asked) < 3:
                    break
        if len(asked) < 3:
            raise Unavailable("the node went away")

    monkeypatch.setattr(house.machines, "printed", printed)
    house.machines.prints(house.sandbox(run_id), b"one\n")
    house.machines.prints(house.sandbox(run_id), b"two\n")
    reader = Reader(house, run_id)
    await reader.until(b"output\none\ntwo\n")
    assert asked == [0, 7, 11]
    monkeypatch.undo()
    await house.engine.cancel(run_id, "enough", clean_up_s=0)
    assert await reader.ends() == b"output\none\ntwo\n"


async def test_after_the_end_the_last_of_it_answers_by_position(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "KEPT_BYTES", 10)
    run_id = await house.start(two_waits)
    await house.waits(run_id, "approval")
    sandbox = house.sandbox(run_id)
    house.machines.prints(sandbox, b"one\ntwo\n")
    await house.engine.cancel(run_id, "enough", clean_up_s=0)
    await house.released(run_id)
    (kept,) = await pieces(house, run_id)
    assert (kept.life, kept.offset, kept.data) == (sandbox, 5, b"t\none\ntwo\n")
    assert [(rest.offset, rest.data) for rest in await pieces(house, run_id, sandbox, 11)] == [(11, b"two\n")]
    assert await pieces(house, run_id, sandbox, 15) == await pieces(house, run_id, sandbox, 99) == []
    assert await pieces(house, run_id, "another", 15) == [kept]
    assert [rest.data for rest in await pieces(house, run_id, tail=1, live=True)] == [b"two\n"]
    assert await pieces(house, run_id, tail=0) == []
