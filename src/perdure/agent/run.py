"""What runs in the guest: ``python3 -m perdure.agent.run FILE.py:FUNCTION``.

It asks for its input, calls the function, and tells how it ended. Exit status: 0 completed, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import builtins
import os
import sys

from perdure.agent import calls, current
from perdure.agent.context import Context
from perdure.agent.declaration import Agent
from perdure.agent.door import Door
from perdure.agent.signature import Signature
from perdure.agent.values import Cancelled, to_json
from perdure.errors import AgentInvalid, InvalidValue, PerdureError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Python 3.11 and newer have task groups, which raise what their tasks raised in a group
_CANCELLED = (Cancelled, getattr(builtins, "BaseExceptionGroup", Cancelled))
_IS_COROUTINE = 0x80  # CO_COROUTINE of code objects (the documentation of inspect)


def load(path: str, name: str) -> Callable[..., Any]:
    """The function that is the agent. ``AgentInvalid`` shows the line of the file that failed."""
    module = type(sys)(calls.MODULE)
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    try:
        with open(path, encoding="utf-8") as file:
            source = file.read()
        exec(compile(source, path, "exec"), vars(module))
    except Exception as problem:
        line = _line_in(path, problem)
        shown = os.path.basename(path)  # where it lies here its author does not know
        where = f"{shown}, line {line}" if line else shown
        message = f"{where} does not import: {type(problem).__name__}: {problem}"
        hint = "correct the file; what it imports is beside it, in the image, or (replay road) in the server's Python"
        raise AgentInvalid(message, hint=hint) from problem
    found: Any = getattr(module, name, None)
    if isinstance(found, Agent):
        return found.function
    if not hasattr(found, "__code__"):
        agents = [key for key, value in vars(module).items() if isinstance(value, Agent)]
        hint = f"its agents are: {', '.join(agents)}" if agents else "mark a function with @agent"
        raise AgentInvalid(f"{path} has no function {name!r}", hint=hint)
    function: Callable[..., Any] = found
    return function


def _line_in(path: str, problem: BaseException) -> int:
    if isinstance(problem, SyntaxError) and problem.filename == path:
        return problem.lineno or 0
    line, trace = 0, problem.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def keywords(function: Callable[..., Any], given: Any) -> dict[str, Any]:
    """The keyword arguments, after the context, that the run's input makes. ``InvalidValue`` names what does not fit.

    An object gives a value per parameter; any other value is that of the only parameter; null is no input.
    """
    signature = Signature(function, skip=1)
    name, names = signature.name, signature.names
    if given is None:
        given = {}
    kind = signature.kinds.get(names[0]) if len(names) == 1 else None
    is_whole = len(names) == 1 and (not isinstance(given, dict) or _is_object(kind, given, names[0]))
    if is_whole:
        given = {names[0]: given}
    elif not isinstance(given, dict):
        hint = f"with values for: {', '.join(names) or 'nothing'}"
        raise InvalidValue(f"the input of {name} is to be a JSON object", hint=hint)
    return signature.check(given, "input")


def _is_object(kind: Any, given: dict[str, Any], name: str) -> bool:
    """Whether the object ``given`` is the only parameter itself: that is annotated as a dict, or a dataclass."""
    is_dict = kind is dict or getattr(kind, "__origin__", None) is dict
    return name not in given and bool(given) and (is_dict or hasattr(kind, "__dataclass_fields__"))


def failure(problem: BaseException) -> dict[str, Any]:
    """How a run failed, as ``fail`` records it."""
    told = calls.error(problem)
    if isinstance(problem, PerdureError):
        told |= {"code": problem.code, "message": problem.message, "hint": problem.hint}
        told["traceback"] = problem.details.get("traceback") or told["traceback"]  # of the step itself
    elif isinstance(problem, Cancelled):
        told["code"] = calls.CANCELLED
    else:
        told["code"] = "agent-failed"
    return told


def main(arguments: list[str]) -> int:
    path, _, name = arguments[0].rpartition(":") if len(arguments) == 1 else ("", "", "")
    if not path or not name:
        print("usage: python3 -m perdure.agent.run FILE.py:FUNCTION", file=sys.stderr)
        return 2
    return live(path, name, Door())


def live(path: str, name: str, door: Door) -> int:
    """Run the agent ``name`` of the file ``path``; ``door`` carries its calls. Its exit status."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a snapshot is no place for output
    lane = calls.Lane("main")
    begun, is_running = door.call(lane, "begin", {}), False
    try:
        function = load(path, name)
        inputs = keywords(function, begun.get("input"))
        is_running = True
        if function.__code__.co_flags & _IS_COROUTINE:
            from perdure.agent.tasks import AsyncContext
            from perdure.agent.tasks import run as run_tasks

            current.context = AsyncContext(begun["run_id"])
            result = run_tasks(function(current.context, **inputs), lane, door.for_tasks())
        else:
            current.context = Context(begun["run_id"], lane, door)
            result = function(current.context, **inputs)
        end, body = "complete", {"result": to_json(result, f"what {name} returned")}
    except (Exception, SystemExit, *_CANCELLED) as problem:
        end, body = "fail", {"error": failure(problem)}
        if is_running:
            print(body["error"]["traceback"], end="", file=sys.stderr)
        elif problem.__cause__ is not None:  # of a file that does not import; of wrong input the message says it all
            print(calls.error(problem.__cause__)["traceback"], end="", file=sys.stderr)
    sys.stdout.flush()
    door.call(lane, end, body)
    return 0 if end == "complete" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
