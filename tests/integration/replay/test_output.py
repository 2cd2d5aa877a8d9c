"""What workers print: once, although the function runs again from its start at each wake; and followed by position."""

from __future__ import annotations

import asyncio
import shutil
import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from perdure.client.server import ServerClient
from perdure.errors import VersionMismatch
from perdure.model import RunState
from perdure.server.transcripts import PART_BYTES, Transcript
from perdure.testing.workers import DEADLINE_S, WorkerHouse

TELLS = """
def f(ctx: Context):
    print("begun")
    ctx.step("fetch", lambda: print("fetching"))
    print("part of ", end="")
    ctx.wait_for("a")
    print("a line")
    ctx.wait_for("b")
    print("the end")
"""
WHOLE = b"begun\nfetching\npart of a line\nthe end\n"


async def test_each_line_is_told_once_through_sleeps_and_a_restart_of_the_server(road: WorkerHouse) -> None:
    client = ServerClient(road.home)
    run_id = await road.start(TELLS)
    reading = asyncio.create_task(asyncio.to_thread(lambda: list(client.printed(run_id, follow=True))))
    await road.until(run_id, "run.suspended")
    await road.engine.signal(run_id, "a", None)
    await road.until(run_id, "run.suspended", 2)
    await road.down()
    await road.up()
    await road.engine.signal(run_id, "b", None)
    await road.result(run_id)
    pieces = await asyncio.wait_for(reading, 30)
    assert b"".join(piece.data for piece in pieces) == WHOLE
    assert len({piece.life for piece in pieces}) == 1
    assert [piece.offset for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
    (kept,) = await asyncio.to_thread(lambda: list(client.printed(run_id, life=pieces[0].life, offset=15)))
    assert (kept.offset, kept.data) == (15, WHOLE[15:])
    assert await asyncio.to_thread(client.output, run_id) == WHOLE


async def test_a_killed_worker_says_again_only_what_came_after_its_last_call(road: WorkerHouse) -> None:
    run_id = await road.start(
        f"""
        import os, signal
        MARK = {str(road.home.root / "mark")!r}
        def f(ctx: Context):
            print("before")
            ctx.emit("begun")
            print("after")
            if not os.path.exists(MARK):
                open(MARK, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert (await road.ends(run_id)).recoveries == 1
    assert await road.engine.output(run_id, 100) == b"before\nafter\nafter\n"


async def test_coroutines_are_heard_from_the_last_recorded_answer_on(road: WorkerHouse) -> None:
    run_id = await road.start(
        """
        import asyncio
        async def f(ctx: AsyncContext):
            async def one(name):
                await ctx.wait_for(name)
                print("heard", name)
            await asyncio.gather(*(one(name) for name in "abc"))
        """
    )
    for number, name in enumerate("bca", 1):
        await road.until(run_id, "run.suspended", number)
        await road.engine.signal(run_id, name, None)
    await road.result(run_id)
    assert await road.engine.output(run_id, 100) == b"heard b\nheard c\nheard a\n"


async def test_a_function_that_goes_another_way_is_heard(road: WorkerHouse) -> None:
    mark = road.home.root / "mark"
    run_id = await road.start(
        f"""
        import os
        def f(ctx: Context):
            if os.path.exists({str(mark)!r}):
                ctx.wait_for("other")
            ctx.step("first", int)
            ctx.wait_for("go")
        """
    )
    await road.until(run_id, "run.suspended")
    mark.touch()
    await road.engine.signal(run_id, "go", None)
    info = await road.ends(run_id)
    assert info.state is RunState.FAILED and info.error is not None and info.error["code"] == VersionMismatch.code
    assert b"does not go the way" in await road.engine.output(run_id, 1000)


async def test_who_reads_while_it_is_removed_keeps_nothing_of_it(
    road: WorkerHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the rest of a worker's folder takes: what the next one prints is kept."""
    loop, remove = asyncio.get_running_loop(), shutil.rmtree
    removing, looked = asyncio.Event(), threading.Event()

    def slow(path: Path, **how: Any) -> None:
        if path.parent.name == "workers":
            loop.call_soon_threadsafe(removing.set)
            assert looked.wait(DEADLINE_S)
        remove(path, **how)

    monkeypatch.setattr(shutil, "rmtree", slow)
    run_id = await road.start(TELLS)
    await road.engine.signal(run_id, "a", None)
    at = (await road.until(run_id, "wait.started", 2)).seq
    await road.engine.signal(run_id, "b", None)
    await asyncio.wait_for(removing.wait(), DEADLINE_S)
    assert await road.engine.output(run_id, 100) == WHOLE
    looked.set()
    await road.engine.rewind(run_id, at)
    heard = b""
    async with asyncio.timeout(DEADLINE_S), aclosing(road.engine.printed(run_id, live=True)) as pieces:
        async for piece in pieces:
            heard += piece.data
            if heard == b"begun\npart of a line\n":  # the step is not run again
                break


def test_a_transcript_keeps_its_newest_parts_and_is_opened_again(tmp_path: Path) -> None:
    folder = tmp_path / "printed"
    made = Transcript(folder, "life")
    for number in range(50):
        made.append(b"%02d\n" % number * (PART_BYTES // 60))
    again = Transcript(folder, "other")
    assert (again.life, again.begin, again.end) == ("life", made.begin, 50 * 3 * (PART_BYTES // 60))
    assert again.begin % PART_BYTES == 0 and PART_BYTES <= again.end - again.begin <= 2 * PART_BYTES
    offset, data = again.read(0)
    assert offset == again.begin and data
    assert again.read(again.end - 3) == (again.end - 3, b"49\n")
    assert again.read(again.end) == (again.end, b"")
    assert again.tail(2) == again.end - 6 and again.tail(0) == again.end and again.tail(1 << 30) == again.begin
    again.append(b"more")
    assert again.read(again.end - 4)[1] == b"more"
