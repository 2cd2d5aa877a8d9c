"""What a model may use: functions, told by their signatures, and what comes of its calls of them. Pure.

A tool is a function that the machine remembers by itself, or a ``Tool`` (``ctx.tool``): one whose effect reaches
beyond the machine, and is recorded as a step.
"""

from __future__ import annotations

import json

from perdure.agent import calls
from perdure.agent.generic import Called
from perdure.agent.signature import Signature
from perdure.agent.steps import KEY
from perdure.agent.values import to_json
from perdure.errors import InvalidValue, PerdureError, StepFailed, TooLarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal

    from perdure.agent.generic import P, R
    from perdure.agent.values import ToolCall

    Effect = Literal["read-only", "idempotent", "once"]
    Doubt = Literal["ask", "fail"]


EFFECTS = {"read-only": "retry", "idempotent": "retry", "once": "ask"}  # and what is done in doubt
IN_DOUBT = "InDoubt"  # the host's name for what it does not repeat
_IS_COROUTINE = 0x80  # CO_COROUTINE of code objects (the documentation of inspect)
_NAME_MAX = 64  # of OpenAI and Anthropic


class Tool(Called["P", "R"]):
    """A function whose calls are recorded: called with its own arguments, and given to ``ctx.chat(tools=[...])``."""

    __slots__ = ("_do", "effect", "function", "name", "on_doubt")

    def __init__(
        self,
        function: Callable[..., Any],
        do: Callable[[Tool[..., Any], tuple[Any, ...], dict[str, Any]], Any],
        *,
        effect: Effect,
        name: str,
        on_doubt: Doubt | None,
    ) -> None:
        """do: makes a step of a call of it."""
        if effect not in EFFECTS:
            raise InvalidValue(f"ctx.tool: effect={effect!r} is unknown", hint=f"known are {', '.join(EFFECTS)}")
        if on_doubt is not None and (effect != "once" or on_doubt not in ("ask", "fail")):
            hint = 'on_doubt="ask" (a person), or "fail", is for effect="once"; the others are done again'
            raise InvalidValue(f"ctx.tool: on_doubt={on_doubt!r} with effect={effect!r}", hint=hint)
        self.function = function
        self.name = name or signature(function).name
        self.effect = effect
        self.on_doubt = on_doubt or EFFECTS[effect]
        self._do = do

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    else:

        def __call__(self, *args, **kwargs):
            return self._do(self, args, kwargs)

    def __repr__(self) -> str:
        return f"<tool {self.name}, {self.effect}>"


def asked(tool: Tool[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The step that a call of it is."""
    given = to_json([*args, kwargs] if args else kwargs, f"tool {tool.name!r}: what it is called with")
    return {**calls.step(tool.name, tool.on_doubt), "args": given}


def offered(parameters: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of a chat as a model is told them, and those of its ``tools`` that are functions, by name."""
    tools = parameters.get("tools") or []
    # Without strict: zip has it since Python 3.10, and guests may be older.
    told = [tool if isinstance(tool, dict) else described(tool) for tool in tools]
    names = [one["function"]["name"] for one, tool in zip(told, tools) if not isinstance(tool, dict)]  # noqa: B905
    if twice := [name for name in names if names.count(name) > 1]:
        raise InvalidValue(f"ctx.chat: two tools are called {twice[0]!r}", hint='ctx.tool(function, name="other")')
    functions = [tool for tool in tools if not isinstance(tool, dict)]
    return {**parameters, "tools": told} if functions else parameters, dict(zip(names, functions))  # noqa: B905


def described(tool: Any) -> dict[str, Any]:
    """What a model is told of a function: its name, its docstring, and the JSON schema of what it takes."""
    function = tool.function if isinstance(tool, Tool) else tool
    takes = signature(function)
    name = tool.name if isinstance(tool, Tool) else takes.name
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii() or len(name) > _NAME_MAX:
        hint = f"a name has up to {_NAME_MAX} letters, digits, - and _"
        raise InvalidValue(f"ctx.chat: a tool is called {name!r}", hint=hint)
    lines = [line.strip() for line in (function.__doc__ or "").strip().splitlines()]
    told = {"name": name, "description": "\n".join(lines), "parameters": takes.schema()}
    return {"type": "function", "function": {key: value for key, value in told.items() if value}}


def refuse_coroutine(tool: Any) -> None:
    """In an agent that is a function: nobody there would await it."""
    function = tool.function if isinstance(tool, Tool) else tool
    code = getattr(_innermost(function), "__code__", None)
    if code is not None and code.co_flags & _IS_COROUTINE:
        hint = "write the agent as a coroutine (async def), too"
        raise InvalidValue(f"the tool {function.__name__!r} is a coroutine function", hint=hint)


def signature(function: Any) -> Signature:
    """What a model may give it: of a function with decorators around it, what the innermost takes."""
    return Signature(_innermost(function), without=KEY)


def _innermost(function: Any) -> Any:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def found(call: ToolCall) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The tool that a model called, and its keyword arguments. ``InvalidValue`` says what does not fit."""
    tool = call.tools.get(call.name)
    if tool is None:
        hint = f"there are: {', '.join(call.tools) or 'none'}"
        raise InvalidValue(f"there is no tool {call.name!r}", hint=hint)
    function = tool.function if isinstance(tool, Tool) else tool
    return tool, signature(function).check(call.arguments, "argument")


def told_to_model(tool: Any) -> tuple[type[Exception], ...]:
    """What may go wrong when it is used that is for the model to know. The rest is the agent's."""
    return (StepFailed, InvalidValue, TooLarge) if isinstance(tool, Tool) else (Exception,)


def answer(call: ToolCall, result: Any) -> dict[str, Any]:
    """The message that tells the model what its call gave: text as it is, other values as JSON."""
    if not isinstance(result, str):
        result = json.dumps(to_json(result, f"what {call.name} returned"), ensure_ascii=False)
    content = result.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    return {"role": "tool", "tool_call_id": call.id, "content": content}


def refusal(call: ToolCall, problem: Exception) -> dict[str, Any]:
    """The message that tells the model what went wrong. Raises what is in doubt, and declared to fail then."""
    tool = call.tools.get(call.name)
    if isinstance(problem, StepFailed) and isinstance(tool, Tool):
        if tool.on_doubt == "fail" and problem.details.get("type") == IN_DOUBT:
            raise problem  # a model would do it again
        return answer(call, problem.message[len(f"step {tool.name!r} failed: ") :])
    message = f"{problem.message}; {problem.hint}" if isinstance(problem, PerdureError) else str(problem)
    return answer(call, f"{type(problem).__name__}: {message}".rstrip("; "))
