"""What steps of functions and of coroutines have in common. Pure."""

from __future__ import annotations

from perdure.agent import calls
from perdure.agent.values import from_json, seconds
from perdure.errors import InvalidValue, StepFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from perdure.agent.values import Duration

KEY = "idempotency_key"
FACTOR = 2  # by which each pause between attempts is longer than the one before


class Attempts:
    """The attempts at one step, and the pauses between them. What it decides by is in the log, so that whoever lives
    through it again decides the same."""

    def __init__(self, retries: int = 0, backoff: Duration = 0, backoff_max: Duration = 0, retry_on: Any = ()) -> None:
        if not isinstance(retries, int) or retries < 0:
            raise InvalidValue(f"ctx.step: retries is {retries!r}", hint="it is a number from 0 on")
        self.first = ""  # the key of the first attempt
        self._left = retries
        self._pause_s = seconds(backoff, "ctx.step: backoff")
        self._max_s = seconds(backoff_max, "ctx.step: backoff_max")
        wanted = retry_on if isinstance(retry_on, (tuple, list)) else (retry_on,)
        self._names = {one if isinstance(one, str) else one.__name__ for one in wanted}

    def begin(self, asked: dict[str, Any], lane: calls.Lane, ordinal: int) -> dict[str, Any]:
        """What the next attempt asks. Those after the first name its key."""
        first, self.first = self.first, self.first or f"{lane.name}/{ordinal}"
        return {**asked, "of": first} if first else asked

    def pause_s(self, failure: StepFailed) -> float:
        """How long to wait before the next attempt. Raises the failure where there is none."""
        types = {failure.details.get("type", ""), *failure.details.get("bases", ())}
        if not self._left or not types & self._names:
            raise failure
        self._left -= 1
        pause, self._pause_s = min(self._pause_s, self._max_s), self._pause_s * FACTOR
        return pause


def arguments(function: Callable[..., Any], given: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a step's function, with the idempotency key where it has a parameter for it."""
    code = getattr(function, "__code__", None)
    if code is None or KEY in given:
        return given
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {**given, KEY: state.get(KEY, "")} if KEY in names else given


def outcome(name: str, function: Callable[..., Any], state: dict[str, Any]) -> Any:
    """What is recorded, in the type that the function says it returns. ``StepFailed``."""
    value = calls.recorded(name, state)
    wanted = getattr(function, "__annotations__", {}).get("return")
    return from_json(value, wanted, f"step {name!r}: its result", getattr(function, "__globals__", {}))
