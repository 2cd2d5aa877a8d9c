"""What a run's program printed, at the command line."""

from __future__ import annotations

import json

import pytest

from perdure.cli.perdure._output import Seams
from perdure.model import OutputPiece, RunState
from perdure.testing.desks import Desk
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval

pytestmark = pytest.mark.timeout(120)


def waits() -> Steps:
    yield approval("Go on?")
    yield Ask("complete", {"result": None})


async def test_it_is_shown_followed_and_kept(desk: Desk) -> None:
    run_id = await desk.house.start(waits, name="first")
    await desk.house.reaches(run_id, RunState.SUSPENDED)
    sandbox = desk.house.sandbox(run_id)
    desk.house.machines.prints(sandbox, b"one\ntwo\n")
    assert await desk("logs", "first") == ("output\none\ntwo\n", "")
    assert await desk("logs", "--tail", "1", run_id) == ("two\n", "")
    assert await desk("logs", "--offset", "11", "--life", sandbox, run_id) == ("two\n", "")
    pieces = [json.loads(line) for line in (await desk("logs", "--json", "first"))[0].splitlines()]
    assert [(piece["life"], piece["offset"], piece["stream"]) for piece in pieces] == [
        (sandbox, 0, "stdout"),
        (sandbox, 7, "stdout"),
    ]
    process = await desk.start("logs", "-f", "first")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"output\n"
    desk.house.machines.prints(sandbox, b"one\n", at=7)
    await desk("approve", "first")
    said, told = await process.communicate()
    assert (said, process.returncode) == (b"one\ntwo\none\n", 0)
    assert told == b"perdure: restored to an earlier moment: what follows may be there already\n"
    await desk.house.released(run_id)
    assert await desk("logs", "first") == ("output\none\ntwo\none\n", "")
    for words in (("--offset", "1", "--tail", "1"), ("--tail", "-1")):
        assert "--tail" in (await desk("logs", *words, "first", status=2))[1]


def test_what_does_not_follow_on_one_another_is_said() -> None:
    def piece(life: str, offset: int, at: int, data: bytes = b"1234") -> OutputPiece:
        return OutputPiece(life=life, offset=offset, stream="stdout", at=at, data=data)

    seams = Seams()
    assert seams.before(piece("a", 0, 0)) == seams.before(piece("a", 4, 4)) == ""
    assert seams.before(piece("a", 8, 6)).startswith("restored to an earlier moment")
    assert seams.before(piece("b", 0, 0)).startswith("another start")
    assert seams.before(piece("b", 9, 9)) == "5 bytes before this are not kept"
    assert Seams().before(piece("a", 3, 3)) == "3 bytes before this are not kept"
    assert Seams("a", None).before(piece("a", 3, 3)) == ""
