"""Waits as values: ``ctx.later`` describes them, ``ctx.all`` and ``ctx.any`` wait for many at once. Pure."""

from __future__ import annotations

from perdure.agent import calls
from perdure.agent.values import seconds
from perdure.errors import InvalidValue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from perdure.agent.declaration import Agent
    from perdure.agent.values import Duration, Field, Moment


class Wait:
    """Something to wait for, which nothing waits for yet. ``Later`` makes them."""

    __slots__ = ("body", "read")

    def __init__(self, body: dict[str, Any], read: Callable[[dict[str, Any]], Any]) -> None:
        self.body = {name: value for name, value in body.items() if value is not None}
        self.read = read  # what its answer means

    def __repr__(self) -> str:
        return f"Wait({self.body!r})"


class Later:
    """The waits of ``Context``, described and not waited for: the same names and arguments, without timeouts."""

    __slots__ = ()

    def sleep(self, duration: Duration) -> Wait:
        """A length of time; its value is None."""
        return Wait(calls.sleep(duration), _nothing)

    def sleep_until(self, moment: Moment) -> Wait:
        """A moment; its value is None."""
        return Wait(calls.sleep_until(moment), _nothing)

    def wait_for(self, name: str) -> Wait:
        """A signal; its value is the signal's."""
        return Wait(calls.signal(name, None), lambda answer: calls.signalled(name, answer))

    def approval(self, prompt: str, *, show: Any = None, form: list[Field] | None = None) -> Wait:
        """A person's answer; its value is the ``Verdict``."""
        return Wait(calls.approval(prompt, show, form, None), calls.verdict)

    def run(self, agent: Agent[Any], /, **input: Any) -> Wait:
        """A run of another agent of this file; its value is what that returned."""
        return Wait(calls.child(agent, input), lambda answer: calls.returned(agent, answer))

    def result(self, run: str) -> Wait:
        """The end of a fork that this run made; its value is what that returned."""
        return Wait(calls.result(run, None), lambda answer: calls.resulted(run, answer))


def request(mode: str, waits: tuple[Any, ...], timeout: Duration | None) -> dict[str, Any]:
    """What ``ctx.all`` and ``ctx.any`` ask."""
    for wait in waits:
        if not isinstance(wait, Wait):
            hint = f'ctx.{mode}(ctx.later.wait_for("go"), ctx.later.sleep("1h"))'
            raise InvalidValue(f"ctx.{mode}: {wait!r} is not a wait", hint=hint)
    if not waits:
        raise InvalidValue(f"ctx.{mode} of no waits would never be over")
    body: dict[str, Any] = {"mode": mode, "waits": [wait.body for wait in waits]}
    return body if timeout is None else {**body, "timeout_s": seconds(timeout, f"ctx.{mode}: timeout")}


def all_of(waits: tuple[Wait, ...], answer: dict[str, Any]) -> list[Any]:
    """The values, in the order of the waits. ``TimeoutError``."""
    if answer.get("timed_out"):
        raise TimeoutError(f"only {len(answer['order'])} of {len(waits)} came in time")
    return [wait.read(found) for wait, found in zip(waits, answer["waits"])]  # noqa: B905  # strict is of Python 3.10


def any_of(waits: tuple[Wait, ...], answer: dict[str, Any]) -> tuple[int, Any]:
    """Which came first, and its value. ``TimeoutError``."""
    if answer.get("timed_out"):
        raise TimeoutError(f"none of {len(waits)} came in time")
    index: int = answer["order"][0]
    return index, waits[index].read(answer["waits"][index])


def _nothing(answer: dict[str, Any]) -> None:
    pass
