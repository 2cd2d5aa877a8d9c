"""What steps of functions and of coroutines have in common. Pure."""

from __future__ import annotations

from perdure.agent import calls
from perdure.agent.values import from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

KEY = "idempotency_key"


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
