"""``AsyncContext``: the same for coroutines. Imports asyncio; nothing else of the SDK does.

Each asyncio task has a lane of its own, named when the task is made: its maker's lane, a dot, and its number among the
maker's tasks. So concurrent tasks never race for an ordinal.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys

from perdure.agent import calls, completion, http1, later, tools
from perdure.agent.asyncdoor import AsyncDoor
from perdure.agent.door import retry_s
from perdure.agent.secret import Secret
from perdure.agent.steps import Attempts, arguments, outcome
from perdure.agent.tools import Tool
from perdure.agent.values import Turn, to_json
from perdure.errors import InvalidValue, StepFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from typing import Any, overload

    from perdure.agent.context import Messages
    from perdure.agent.declaration import Agent
    from perdure.agent.generic import P, R
    from perdure.agent.later import Wait
    from perdure.agent.tools import Doubt, Effect
    from perdure.agent.values import Duration, Field, Forks, Moment, ToolCall, Verdict

# The type of what the loop makes a task of when an async generator is dropped before its end.
_CLOSES = "async_generator_athrow"

_MAKERS = 6  # frames between the loop's factory and who makes a task

_lane: contextvars.ContextVar[calls.Lane] = contextvars.ContextVar("perdure_lane")
_door: contextvars.ContextVar[AsyncDoor] = contextvars.ContextVar("perdure_door")


def run(main: Coroutine[Any, Any, Any], lane: calls.Lane, door: AsyncDoor) -> Any:
    """Run an agent's coroutine in a fresh loop, with ``lane`` as its main task's; its calls leave through ``door``."""

    async def started() -> Any:
        asyncio.get_running_loop().set_task_factory(_new_task)
        _lane.set(lane)
        _door.set(door)
        return await main

    return asyncio.run(started())


def place() -> str:
    """Where the asking task is among the agent's calls: the same when it is lived through again. "": it is not the
    agent's, or in a step."""
    lane = _lane.get(None)
    return "" if lane is None or lane.step else f"{lane.name}/{lane.taken}"


def _new_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    context = options.pop("context", None) or contextvars.copy_context()
    if (lane := _lane.get(None)) is not None:
        child = lane.closing() if type(coroutine).__name__ == _CLOSES else lane.child()
        child.has_no_order = lane.has_no_order or _has_no_order()
        context.run(_lane.set, child)

    def make() -> asyncio.Task[Any]:
        return asyncio.Task(coroutine, loop=loop, **options)

    return context.run(make)  # a task copies the context that it is made in


def _has_no_order() -> bool:
    """``asyncio.as_completed`` makes its tasks out of a set: another order, and so other lanes, in each life."""
    frame = sys._getframe(2)
    for _ in range(_MAKERS):
        if frame.f_code is asyncio.as_completed.__code__:
            return True
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False


class AsyncContext:
    """The host, as an agent's coroutine sees it. The methods are those of ``Context``, awaited."""

    later = later.Later()

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    async def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        on_delta: Callable[[str], Any] | None = None,
        **parameters: Any,
    ) -> Turn:
        """One turn of a model. See ``Context.chat``."""
        async for piece in self._chat(messages, model, on_delta is not None, parameters):
            if isinstance(piece, Turn):
                return piece
            if on_delta is not None:
                on_delta(piece)
        raise AssertionError("a chat ends with its turn")

    async def chat_stream(
        self, messages: Messages, *, model: str | None = None, **parameters: Any
    ) -> AsyncIterator[str | Turn]:
        """Iterate the text as it comes: ``async for piece in ctx.chat_stream(...)``; the last piece is the ``Turn``."""
        async for piece in self._chat(messages, model, True, parameters):
            yield piece

    async def _chat(
        self, messages: Messages, model: str | None, is_stream: bool, parameters: dict[str, Any]
    ) -> AsyncIterator[str | Turn]:
        parameters, known = tools.offered(parameters)
        body = completion.request(messages, model, is_stream, parameters)
        lane = _lane.get()
        ordinal = lane.take()
        said, failures = "", 0
        while True:
            retelling = completion.Retelling(said)
            try:
                reader = http1.AnswerReader()
                answer = completion.Completion(is_stream)
                async for piece in _door.get().stream(reader, completion.PATH, lane, ordinal, body):
                    answer.expect(reader.status)
                    for delta in answer.feed(piece):
                        if fresh := retelling.fresh(delta):
                            said += fresh
                            yield fresh
                yield answer.turn(reader.status, known)
                return
            except OSError:  # the connection, or a stream that died with a server: the same key is asked again
                failures += 1
                await asyncio.sleep(retry_s(failures))

    if TYPE_CHECKING:

        @overload
        async def step(
            self,
            name: str,
            function: Callable[..., Coroutine[Any, Any, R]],
            *args: Any,
            on_doubt: str = "retry",
            retries: int = 0,
            backoff: Duration = "1s",
            backoff_max: Duration = "10m",
            retry_on: Any = Exception,
            **kwargs: Any,
        ) -> R: ...

        @overload
        async def step(
            self,
            name: str,
            function: Callable[..., R],
            *args: Any,
            on_doubt: str = "retry",
            retries: int = 0,
            backoff: Duration = "1s",
            backoff_max: Duration = "10m",
            retry_on: Any = Exception,
            **kwargs: Any,
        ) -> R: ...

    async def step(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        on_doubt: str = "retry",
        retries: int = 0,
        backoff: Duration = "1s",
        backoff_max: Duration = "10m",
        retry_on: Any = Exception,
        **kwargs: Any,
    ) -> Any:
        """Run a function or a coroutine function once for all. See ``Context.step``."""
        attempts = Attempts(retries, backoff, backoff_max, retry_on)
        return await self._step(calls.step(name, on_doubt), attempts, function, args, kwargs)

    async def _step(
        self,
        asked: dict[str, Any],
        attempts: Attempts,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        name, lane = asked["name"], _lane.get()
        while True:
            ordinal = lane.take()
            state = await _call(lane, "step", attempts.begin(asked, lane, ordinal), ordinal)
            if state["status"] == "run":
                children, lane.step = lane.children, name
                try:
                    result = function(*args, **arguments(function, kwargs, state))
                    if asyncio.iscoroutine(result):
                        result = await result
                    end = {"result": to_json(result, f"step {name!r}: its result")}
                except asyncio.CancelledError as problem:  # its end is recorded all the same: nothing waits for it
                    await _whole(_call(lane, "step/end", {"error": calls.error(problem)}, ordinal))
                    raise
                except Exception as problem:
                    end = {"error": calls.error(problem)}
                finally:  # when it is answered from the log its tasks are not made: those after it keep their names
                    lane.children, lane.step = children, ""
                state = await _call(lane, "step/end", end, ordinal)
            try:
                return outcome(name, function, state)
            except StepFailed as failure:
                pause_s = attempts.pause_s(failure)
            await self.sleep(pause_s)

    if TYPE_CHECKING:

        @overload
        def tool(
            self,
            function: Callable[P, Awaitable[R]],
            *,
            effect: Effect = "once",
            name: str = "",
            on_doubt: Doubt | None = None,
        ) -> Tool[P, Coroutine[Any, Any, R]]: ...

        @overload
        def tool(
            self, function: Callable[P, R], *, effect: Effect = "once", name: str = "", on_doubt: Doubt | None = None
        ) -> Tool[P, Coroutine[Any, Any, R]]: ...

    def tool(
        self, function: Any, *, effect: Effect = "once", name: str = "", on_doubt: Doubt | None = None
    ) -> Tool[..., Any]:
        """See ``Context.tool``; not awaited, but what it makes is: of a function and of a coroutine function."""
        return Tool(function, self._do, effect=effect, name=name, on_doubt=on_doubt)

    async def _do(self, tool: Tool[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return await self._step(tools.asked(tool, args, kwargs), Attempts(), tool.function, args, kwargs)

    async def use(self, call: ToolCall) -> dict[str, Any]:
        """See ``Context.use``. Many at once: ``await asyncio.gather(*map(ctx.use, turn.tool_calls))``."""
        caught: tuple[type[Exception], ...] = (InvalidValue,)
        try:
            function, given = tools.found(call)
            caught = tools.told_to_model(function)
            result = function(**given)
            return tools.answer(call, await result if asyncio.iscoroutine(result) else result)
        except caught as problem:
            return tools.refusal(call, problem)

    async def sleep(self, duration: Duration) -> None:
        """See ``Context.sleep``."""
        await _wait(calls.sleep(duration))

    async def sleep_until(self, moment: Moment) -> None:
        """See ``Context.sleep_until``."""
        await _wait(calls.sleep_until(moment))

    async def wait_for(self, name: str, *, timeout: Duration | None = None) -> Any:
        """See ``Context.wait_for``."""
        return calls.signalled(name, await _wait(calls.signal(name, timeout)))

    async def approval(
        self, prompt: str, *, show: Any = None, form: list[Field] | None = None, timeout: Duration | None = None
    ) -> Verdict:
        """See ``Context.approval``."""
        return calls.verdict(await _wait(calls.approval(prompt, show, form, timeout)))

    async def run(self, agent: Agent[R], /, **input: Any) -> R:
        """See ``Context.run``."""
        result: R = calls.returned(agent, await _wait(calls.child(agent, input)))
        return result

    async def fork(self, count: int = 1) -> Forks:
        """See ``Context.fork``. Each fork has all tasks of this run, and what they have not been answered yet each asks
        by itself."""
        said = await _call(_lane.get(), "fork", calls.fork(count))
        self.run_id = said["run_id"]
        return calls.forked(said)

    async def result(self, run: str, *, timeout: Duration | None = None) -> Any:
        """See ``Context.result``."""
        return calls.resulted(run, await _wait(calls.result(run, timeout)))

    async def all(self, *waits: Wait, timeout: Duration | None = None) -> list[Any]:
        """See ``Context.all``."""
        if not waits:
            return []
        return later.all_of(waits, await _wait(later.request("all", waits, timeout), "wait/set"))

    async def any(self, *waits: Wait, timeout: Duration | None = None) -> tuple[int, Any]:
        """See ``Context.any``."""
        return later.any_of(waits, await _wait(later.request("any", waits, timeout), "wait/set"))

    async def now(self) -> float:
        """See ``Context.now``."""
        return float((await _call(_lane.get(), "value", {"of": "now"}))["value"])

    async def random(self) -> float:
        """See ``Context.random``."""
        return float((await _call(_lane.get(), "value", {"of": "random"}))["value"])

    async def uuid(self) -> str:
        """See ``Context.uuid``."""
        return str((await _call(_lane.get(), "value", {"of": "uuid"}))["value"])

    async def emit(self, name: str, value: Any = None) -> None:
        """See ``Context.emit``."""
        await _call(_lane.get(), "emit", calls.emit(name, value))

    async def signal(self, run: str, name: str, value: Any = None) -> None:
        """See ``Context.signal``."""
        await _call(_lane.get(), "signal", calls.send(run, name, value))

    def secret(self, name: str) -> Secret:
        """See ``Context.secret``; not awaited."""
        return Secret(name, _door.get().url())

    async def checkpoint(self, *, keep: bool = False) -> None:
        """See ``Context.checkpoint``."""
        await _call(_lane.get(), "checkpoint", {"keep": keep})

    async def messages(self, *new: dict[str, Any]) -> list[dict[str, Any]]:
        """See ``Context.messages``."""
        for message in new:
            await _call(_lane.get(), "message", calls.message(message))
        found: list[dict[str, Any]] = (await _call(_lane.get(), "messages", {}))["messages"]
        return found


async def _wait(body: Any, name: str = "wait") -> Any:
    """The end of a wait. Cancelled, it is withdrawn: the run is not parked on what nobody waits for."""
    lane = _lane.get()
    ordinal = lane.take()
    try:
        done = await _call(lane, name, body, ordinal)
    except asyncio.CancelledError:
        await _whole(_call(lane, "wait/withdraw", {}, ordinal))
        raise
    if done.get("withdrawn"):  # it was cancelled here when this was first lived through, and is to be again
        await asyncio.get_running_loop().create_future()
    return done


async def _whole(call: Coroutine[Any, Any, Any]) -> None:
    """Ask to the end, although the asking task is cancelled, perhaps more than once."""
    asked = asyncio.Task(call)  # not by the loop's factory: it takes no lane, so that those of others keep their names
    while not asked.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({asked})
    asked.result()


async def _call(lane: calls.Lane, name: str, body: Any, ordinal: int | None = None) -> Any:
    return await _door.get().call(lane, name, body, ordinal)
