"""The calls of ``perdure.runs.calls`` as values: what to ask, and what an answer means. Pure.

A call is a path and a JSON body; the contexts (``context`` for functions, ``tasks`` for coroutines) carry them
through the door.
"""

from __future__ import annotations

import _thread
import json

from perdure.agent import values
from perdure.agent.values import Cancelled, Forks, Verdict, seconds, to_json
from perdure.errors import ChildFailed, InvalidValue, ProtocolError, StepFailed, from_json, in_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from perdure.agent.declaration import Agent
    from perdure.agent.values import Duration, Field, Moment

BASE = "/perdure/v1/"
CANCELLED = "cancelled"  # the host's code
MODULE = "__perdure_agent__"  # what the agent's file is loaded as
DOUBTS = ("retry", "ask", "fail")


class Lane:
    """A sequence of calls: each takes the next ordinal. In guest memory, so that a restore rewinds it.

    Of one thread: which of two comes first would differ from life to life.
    """

    def __init__(self, name: str, step: str = "") -> None:
        """step: the one that its task is in."""
        self.name = name
        self.step = step
        self.has_no_order = False  # who made its task made many, in an order that is chance
        self.children = 0
        self.closings = 0
        self.taken = 0
        self._thread = _thread.get_ident()

    def take(self) -> int:
        if _thread.get_ident() != self._thread:
            hint = "write the agent as a coroutine (async def): each of its tasks has a sequence of its own"
            raise InvalidValue("ctx is used from another thread than the agent's", hint=hint)
        if self.step:  # answered from the log it would not ask, and what comes after would find that
            hint = "ask ctx before the step or after it; a tool that asks ctx is to be a plain function"
            raise InvalidValue(f"ctx is used in step {self.step!r}, which is recorded as a whole", hint=hint)
        if self.has_no_order:
            hint = "asyncio.as_completed([asyncio.create_task(one) for one in ...])"
            raise InvalidValue("asyncio.as_completed makes tasks of coroutines in no order: give it tasks", hint=hint)
        ordinal = self.taken
        self.taken += 1
        return ordinal

    def child(self) -> Lane:
        """The lane of a task that this lane's task started."""
        self.children += 1
        return Lane(f"{self.name}.{self.children}", self.step)

    def closing(self) -> Lane:
        """The lane of a task that closes what was dropped: when, and beside whom, is up to the garbage collector."""
        self.closings += 1
        return Lane(f"{self.name}.closing{self.closings}", self.step)


def answer(status: int, body: bytes) -> Any:
    """The value of a JSON answer; raises the host's error for a status of 400 and above."""
    try:
        value = json.loads(body) if body else {}
    except ValueError:
        raise ProtocolError(f"the host's answer is not JSON: {body[:80]!r}") from None
    if status < 400:
        return value
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict) and error.get("code") == CANCELLED:
        raise Cancelled(error.get("message", ""))
    raise from_json(error if isinstance(error, dict) else {"message": f"the host answered {status}"})


def text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidValue(f"{what} is to be a string that is not empty, and is {value!r}")
    checked: str = to_json(value, what)
    return checked


def step(name: str, on_doubt: str) -> dict[str, Any]:
    if on_doubt not in DOUBTS:
        raise InvalidValue(f"ctx.step: on_doubt={on_doubt!r} is unknown", hint=f"known are {', '.join(DOUBTS)}")
    return {"name": text(name, "ctx.step: the name"), "on_doubt": on_doubt}


def recorded(name: str, state: dict[str, Any]) -> Any:
    """The result of a step that is over. ``StepFailed`` where an error is recorded."""
    error = state.get("error")
    if error is None:
        return state.get("result")
    message = f"step {name!r} failed: {error.get('type', 'error')}: {error.get('message', '')}"
    bases = error.get("bases") or []
    raise StepFailed(message, type=error.get("type", ""), bases=bases, traceback=error.get("traceback", ""))


def error(problem: BaseException) -> dict[str, Any]:
    """An exception as it is recorded."""
    import traceback

    trace = problem.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__package__") == __package__:
        trace = trace.tb_next  # it begins in the author's own code
    lines = traceback.format_exception(type(problem), problem, trace or problem.__traceback__)
    told = {"type": type(problem).__name__, "message": str(problem), "traceback": "".join(lines)}
    shown: dict[str, Any] = {name: text.encode("utf-8", "replace").decode() for name, text in told.items()}
    return {**shown, "bases": [base.__name__ for base in type(problem).__mro__[1:-2]]}  # without BaseException, object


def sleep(duration: Duration) -> dict[str, Any]:
    return {"kind": "time", "seconds": seconds(duration, "ctx.sleep")}


def sleep_until(moment: Moment) -> dict[str, Any]:
    return {"kind": "time", "until": values.moment(moment, "ctx.sleep_until")}


def signal(name: str, timeout: Duration | None) -> dict[str, Any]:
    limit = None if timeout is None else seconds(timeout, "ctx.wait_for: timeout")
    return {"kind": "signal", "name": text(name, "ctx.wait_for: the name"), "timeout_s": limit}


def signalled(name: str, value: dict[str, Any]) -> Any:
    """The value of a signal. The builtin ``TimeoutError`` where none came in time."""
    if value.get("timed_out"):
        raise TimeoutError(f"no signal {name!r} came in time")
    return value.get("value")


def approval(prompt: str, show: Any, form: list[Field] | None, timeout: Duration | None) -> dict[str, Any]:
    asked = {
        "kind": "approval",
        "prompt": text(prompt, "ctx.approval: the question"),
        "show": to_json(show, "ctx.approval: show"),
        "timeout_s": None if timeout is None else seconds(timeout, "ctx.approval: timeout"),
    }
    return {**asked, "form": [_field(field) for field in form]} if form else asked


def _field(field: Field) -> dict[str, Any]:
    if not isinstance(field, values.Field):
        raise InvalidValue(f"ctx.approval: {field!r} is not a field of a form", hint='form=[Field("amount", "number")]')
    told: dict[str, Any] = to_json({name: getattr(field, name) for name in field.__slots__}, "ctx.approval: form")
    return told


def verdict(value: dict[str, Any]) -> Verdict:
    return Verdict(
        bool(value.get("approved")),
        value.get("comment") or "",
        value.get("by") or "",
        value.get("at") or 0.0,
        bool(value.get("timed_out")),
        value.get("values"),
    )


def child(agent: Agent[Any], given: dict[str, Any]) -> dict[str, Any]:
    """Start a run of ``agent``, an agent of the same file, and wait for its end."""
    name = getattr(agent, "__name__", repr(agent))
    function = getattr(agent, "function", None)
    if function is None or function.__globals__.get(name) is not agent:
        hint = "a function with @agent above it, at the top level of its file"
        raise InvalidValue(f"ctx.run: {name} is not an agent", hint=hint)
    if function.__globals__.get("__name__") != MODULE:
        raise InvalidValue(f"ctx.run: {name} is of another file", hint="agents that run each other stand in one file")
    asked = {"kind": "child", "function": name, "input": to_json(given, f"ctx.run: the input of {name}")}
    wished = {"image": agent.image, "memory_mib": agent.memory_mib, "vcpus": agent.vcpus}
    return {**asked, **{field: value for field, value in wished.items() if value}}


def returned(agent: Agent[Any], value: dict[str, Any]) -> Any:
    """What a child returned, in the type that its function says. ``ChildFailed``."""
    error = value.get("error")
    function, name = agent.function, agent.__name__
    if error is None:
        wanted = function.__annotations__.get("return")
        return values.from_json(value.get("result"), wanted, f"what {name} returned", function.__globals__)
    run_id = value.get("run_id", "")
    message = f"child run {run_id} ({name}) failed: {in_words(error)}"
    raise ChildFailed(message, hint=f"perdure show {run_id}", run_id=run_id, error=error)


def fork(count: int) -> dict[str, Any]:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InvalidValue(f"ctx.fork: {count!r} is no number of forks", hint="It is 1 or more: ctx.fork(3).")
    return {"count": count}


def forked(value: dict[str, Any]) -> Forks:
    return Forks(value["number"], value["forks"])


def result(run: str, timeout: Duration | None) -> dict[str, Any]:
    limit = None if timeout is None else seconds(timeout, "ctx.result: timeout")
    return {"kind": "fork", "run": text(run, "ctx.result: the fork"), "timeout_s": limit}


def resulted(run: str, value: dict[str, Any]) -> Any:
    """What a fork returned. ``ChildFailed``; the builtin ``TimeoutError`` where it did not end in time."""
    if value.get("timed_out"):
        raise TimeoutError(f"fork {run} did not end in time")
    error = value.get("error")
    if error is None:
        return value.get("result")
    raise ChildFailed(f"fork {run} failed: {in_words(error)}", hint=f"perdure show {run}", run_id=run, error=error)


def emit(name: str, value: Any) -> dict[str, Any]:
    return {"name": text(name, "ctx.emit: the name"), "value": to_json(value, f"ctx.emit({name!r})")}


def send(run: str, name: str, value: Any) -> dict[str, Any]:
    return {
        "run": text(run, "ctx.signal: the run"),
        "name": text(name, "ctx.signal: the name"),
        "value": to_json(value, f"ctx.signal({name!r})"),
    }


def message(new: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(new, dict) or not isinstance(new.get("role"), str):
        hint = 'for example {"role": "user", "content": "..."}'
        raise InvalidValue(f"ctx.messages: {new!r} is not a message", hint=hint)
    return {"message": to_json(new, "ctx.messages")}
