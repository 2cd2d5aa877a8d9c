"""Coroutines on the replay road: their tasks hear again what came first, in the order in which it came."""

from __future__ import annotations

import asyncio
from pathlib import Path

from perdure.model import RunState
from perdure.testing.house import Provider
from perdure.testing.workers import WorkerHouse


async def test_coroutines_hear_what_came_first_first(road: WorkerHouse) -> None:
    """Which of two answers wakes its task first decides what the function does; so it is the same each time."""
    run_id = await road.start(
        """
        import asyncio
        async def f(ctx: AsyncContext):
            order = []
            async def one(name):
                order.append(await ctx.wait_for(name))
                await ctx.emit("after", order[-1])
            tasks = [asyncio.create_task(one(name)) for name in "abc"]
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            order.append(len(done))
            await asyncio.gather(*pending)
            await ctx.wait_for("end")
            return order
        """
    )
    for name in "cab":
        await road.until(run_id, "wait.started", 3)
        await road.engine.signal(run_id, name, name)
        await road.until(run_id, "emit", "cab".index(name) + 1)
    await road.until(run_id, "wait.started", 4)
    await road.until(run_id, "run.suspended")
    await road.engine.signal(run_id, "end", None)
    assert await road.result(run_id) == ["c", 1, "a", "b"]


async def test_tasks_of_a_step_do_not_rename_those_after_it(road: WorkerHouse, tmp_path: Path) -> None:
    """They are not made again, when it is answered from the log."""
    ledger = tmp_path / "ledger"
    run_id = await road.start(
        f"""
        import asyncio
        def did(what):
            open({str(ledger)!r}, "a").write(what)
            return what
        async def works():
            await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))
            return did("a")
        async def f(ctx: AsyncContext):
            first = await ctx.step("first", works)
            others = await asyncio.gather(*(ctx.step(what, did, what) for what in "bc"))
            await ctx.wait_for("go")
            return [first, *others]
        """
    )
    await road.until(run_id, "run.suspended")
    await road.engine.signal(run_id, "go", None)
    assert await road.result(run_id) == ["a", "b", "c"]
    assert sorted(ledger.read_text()) == ["a", "b", "c"]


async def test_tasks_of_a_group_are_cancelled_again_by_the_one_that_fails(road: WorkerHouse) -> None:
    """Those wait for what was withdrawn, and withdraw it, at one entry of the log."""
    run_id = await road.start(
        """
        import asyncio
        async def f(ctx: AsyncContext):
            async def waits(name):
                try:
                    await ctx.wait_for(name)
                except asyncio.CancelledError:
                    await ctx.emit("cancelled", name)
                    raise
            async def fails():
                await ctx.sleep("10ms")
                raise ValueError("no")
            tasks = [asyncio.create_task(one) for one in (waits("a"), fails(), waits("b"))]
            try:
                await asyncio.gather(*tasks)
            except ValueError:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            await ctx.wait_for("go")
            return [task.cancelled() for task in tasks]
        """
    )
    await road.until(run_id, "emit", 2)
    await road.until(run_id, "run.suspended")
    await road.engine.signal(run_id, "go", None)
    assert await road.result(run_id) == [True, False, True]
    assert sorted(entry.payload["value"] for entry in await road.entries(run_id, "emit")) == ["a", "b"]


async def test_a_turn_comes_among_steps_again_where_it_came(road: WorkerHouse, provider: Provider) -> None:
    run_id = await road.start(
        """
        import asyncio
        async def f(ctx: AsyncContext):
            order, answered = [], asyncio.Event()
            async def asks():
                await ctx.chat("hello")
                order.append("turn")
                answered.set()
            async def does():
                await ctx.step("after it", answered_first)
                order.append("step")
            async def answered_first():
                await answered.wait()
            await asyncio.gather(does(), asks())
            await ctx.wait_for("go")
            return order
        """
    )
    await road.until(run_id, "run.suspended")
    await road.engine.signal(run_id, "go", None)
    assert await road.result(run_id) == ["turn", "step"]
    assert provider.requests == 1


async def test_tasks_that_are_made_in_no_order_are_refused(road: WorkerHouse) -> None:
    run_id = await road.start(
        """
        import asyncio
        async def f(ctx: AsyncContext):
            names = "abc"
            try:
                [await one for one in asyncio.as_completed([ctx.emit(name) for name in names])]
            except Exception as problem:
                told = str(problem)
            tasks = [asyncio.create_task(ctx.wait_for(name)) for name in names]
            return [told, [await one for one in asyncio.as_completed(tasks)]]
        """
    )
    await road.until(run_id, "run.suspended")
    for name in "cab":
        await road.engine.signal(run_id, name, name)
    told, names = await road.result(run_id)
    assert "give it tasks" in told and "create_task" in told
    assert sorted(names) == ["a", "b", "c"]


async def test_a_generator_that_is_collected_does_not_rename_the_tasks_after_it(road: WorkerHouse) -> None:
    """The loop closes it in a task, at a moment that is the garbage collector's."""
    run_id = await road.start(
        """
        import asyncio, gc
        async def pieces():
            yield 1
            yield 2
        async def dropped():
            held = [pieces()]
            held.append(held)
            await anext(held[0])
        async def f(ctx: AsyncContext):
            lives = []
            await ctx.step("first", lambda: lives.append(1))
            if lives:  # only where it is lived through first
                await dropped()
                gc.collect()
                await asyncio.sleep(0.01)
            ids = await asyncio.gather(ctx.uuid(), ctx.uuid())
            await ctx.wait_for("go")
            return [ids, await asyncio.gather(ctx.random(), ctx.random())]
        """
    )
    await road.until(run_id, "run.suspended")
    await road.engine.signal(run_id, "go", None)
    ids, _ = await road.result(run_id)
    assert ids == [entry.payload["value"] for entry in await road.entries(run_id) if entry.payload.get("of") == "uuid"]


async def test_a_function_that_fails_while_answers_are_due_ends(road: WorkerHouse) -> None:
    """Its loop cancels all tasks then, also the one that hands answers out, and what they withdraw is answered."""
    run_id = await road.start(
        """
        import asyncio
        async def f(ctx: AsyncContext):
            async def fails():
                await ctx.wait_for("first")
                raise ValueError("no")
            await asyncio.gather(fails(), ctx.wait_for("second"))
        """
    )
    await road.until(run_id, "run.suspended")
    first = road.engine.signal(run_id, "first", None)
    await asyncio.gather(first, road.engine.signal(run_id, "second", None))  # both before it wakes
    info = await road.ends(run_id)
    assert info.state is RunState.FAILED and info.error is not None
    assert info.error["message"] == "no"
