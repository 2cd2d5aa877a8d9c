"""Reads an agent's file without running it: what is wrong with it is said before any machine starts."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from perdure.client import modules
from perdure.errors import AgentInvalid, InvalidValue

_OPTIONS: dict[str, type] = {
    "image": str,
    "memory_mib": int,
    "vcpus": int,
    "durability": str,
    "version": str,
    "retry": dict,
    "budget": dict,
}
NEVER_S = 1e10  # as a grace: 300 years
_POLICY = ("idle_grace_s", "think_grace_s", "checkpoint_turns", "checkpoint_s")  # numbers from 0 on
DURABILITIES = ("snapshot", "replay")
FORMS = "write FILE.py:FUNCTION, or --image IMAGE -- COMMAND"


@dataclass(frozen=True)
class AgentSource:
    """An agent: ``function`` in the text ``source`` of the file ``file`` (NAME.py), and what ``@agent`` says."""

    file: str
    function: str
    source: str
    image: str = ""
    memory_mib: int = 0
    vcpus: int = 0
    retry: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, float] = field(default_factory=dict)  # what it may spend on models
    policy: dict[str, float] = field(default_factory=dict)  # what it says of when its machine sleeps and is captured
    durability: str = "snapshot"
    version: str = ""
    modules: dict[str, str] = field(default_factory=dict)  # that it imports from beside it, in base64


def read(reference: str) -> AgentSource:
    """The agent ``FILE.py:FUNCTION``, with the modules that it imports from beside it. ``AgentInvalid`` says what is
    wrong, with the line."""
    place, colon, function = reference.rpartition(":")
    if not colon or not place or not function.isidentifier():
        raise AgentInvalid(f"{reference!r} does not name an agent", hint=FORMS)
    path = Path(place)
    if path.suffix != ".py":
        raise AgentInvalid(f"{place} is not a Python file", hint=FORMS)
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise AgentInvalid(f"{place} cannot be read: {error.strerror}", hint="is the path right?") from error
    except UnicodeDecodeError as error:
        raise AgentInvalid(f"{place} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    return replace(parse(source, place, function), modules=modules.beside(source, path))


def parse(source: str, place: str, function: str) -> AgentSource:
    """The agent ``function`` in the text of a file. place: what that is called in errors. ``AgentInvalid``."""
    definitions = _definitions(source, place)
    found = _named(function, definitions)
    if found is None:
        agents = [node.name for node in definitions if _decorator(node) is not None]
        hint = f"its agents are: {', '.join(agents)}" if agents else "mark a function with @agent"
        raise AgentInvalid(f"{place} has no function {function!r} at its top level", hint=hint)
    decorator = _decorator(found)
    if decorator is None:
        raise AgentInvalid(f"{place}, line {found.lineno}: {function} is not an agent", hint="write @agent above it")
    return AgentSource(Path(place).name, function, source, **_options(decorator, place))


def completed(request: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a ``StartRequest``, and where they say nothing what ``@agent`` says; of a function without it
    nothing more. What it says of a machine is for runs that have one. ``AgentInvalid``."""
    if not request.get("source"):
        return dict(request)
    source, place, function = (str(request.get(name) or "") for name in ("source", "file", "function"))
    found = _named(function, _definitions(source, place))
    decorator = None if found is None else _decorator(found)
    if decorator is None:
        return dict(request)
    agent = AgentSource(place, function, source, **_options(decorator, place))
    whole = dict(request)
    is_replay = (request.get("durability") or agent.durability) == "replay"
    for name in ("durability", "version", *(() if is_replay else ("image", "memory_mib", "vcpus"))):
        whole[name] = request.get(name) or getattr(agent, name)
    whole["policy"] = {**agent.policy, **(request.get("policy") or {})}
    for name in ("retry", "budget"):
        whole[name] = {**getattr(agent, name), **(request.get(name) or {})}
    return whole


_Definition = ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(source: str, place: str) -> list[_Definition]:
    """The functions at its top level."""
    try:
        compile(source, place, "exec")  # finds more than ast.parse: return outside a function …
        tree = ast.parse(source, place)
    except (SyntaxError, ValueError) as error:
        raise AgentInvalid(f"{place} does not import: {_told(error)}", hint="correct the file") from error
    return [node for node in tree.body if isinstance(node, _Definition)]


def _named(function: str, definitions: list[_Definition]) -> _Definition | None:
    return next((node for node in reversed(definitions) if node.name == function), None)


def _told(error: SyntaxError | ValueError) -> str:
    if not isinstance(error, SyntaxError):
        return str(error)
    line = (error.text or "").strip()
    return f"line {error.lineno}: {error.msg}" + (f"\n    {line}" if line else "")


def _decorator(node: _Definition) -> ast.expr | None:
    """Its ``@agent``, ``@agent(...)`` or ``@perdure.agent(...)``."""
    for decorator in node.decorator_list:
        name = decorator.func if isinstance(decorator, ast.Call) else decorator
        if getattr(name, "id", getattr(name, "attr", "")) == "agent":
            return decorator
    return None


def _options(decorator: ast.expr, place: str) -> dict[str, Any]:
    if not isinstance(decorator, ast.Call):
        return {}
    if decorator.args:
        raise AgentInvalid(f"{place}, line {decorator.lineno}: @agent takes names only", hint='@agent(image="...")')
    options: dict[str, Any] = {}
    for keyword in decorator.keywords:
        where = f"{place}, line {keyword.value.lineno}: @agent({keyword.arg}=...)"
        wanted = _OPTIONS.get(keyword.arg or "")
        if wanted is None and keyword.arg not in _POLICY:
            raise AgentInvalid(f"{where} is unknown", hint=f"known are {', '.join((*_OPTIONS, *_POLICY))}")
        try:
            value = ast.literal_eval(keyword.value)
        except ValueError:
            raise AgentInvalid(f"{where} is not a literal", hint="it is read without running the file") from None
        if wanted is None:
            if type(value) not in (int, float) or not 0 <= value <= NEVER_S:
                raise AgentInvalid(f"{where} is {value!r}", hint="it is a number from 0 on")
            options.setdefault("policy", {})[keyword.arg or ""] = value
            continue
        if type(value) is not wanted or (isinstance(value, int) and value <= 0):
            raise AgentInvalid(
                f"{where} is {value!r}", hint=f"it is a {'positive ' * (wanted is int)}{wanted.__name__}"
            )
        if wanted is dict:
            _CHECKS[keyword.arg or ""](value, where)
        options[keyword.arg or ""] = value
    durability = options.get("durability", "snapshot")
    if durability not in DURABILITIES:
        raise AgentInvalid(
            f"{place}: durability={durability!r} is unknown", hint=f"known are {', '.join(DURABILITIES)}"
        )
    machine = [name for name in ("image", "memory_mib", "vcpus") if name in options]
    if durability == "replay" and machine:
        message = f'{place}: {machine[0]} is of microVMs, and durability="replay" has none'
        raise AgentInvalid(message, hint="leave one of the two out")
    return options


def _check_retry(value: Any, where: str) -> None:
    import msgspec

    from perdure.model import Retry

    try:
        for kind, rule in msgspec.convert(value, dict[str, Retry]).items():
            rule.check(kind, where)
    except msgspec.ValidationError as error:
        raise AgentInvalid(f"{where}: {error}", hint='for example {"agent-failed": {"attempts": 3}}') from error
    except InvalidValue as error:
        raise AgentInvalid(error.message, hint=error.hint) from error


def _check_budget(value: Any, where: str) -> None:
    import msgspec

    from perdure.model import Budget

    known = Budget.__struct_fields__
    if unknown := [name for name in value if name not in known]:
        raise AgentInvalid(f"{where}: no such limit: {unknown[0]!r}", hint=f"Known are {', '.join(known)}.")
    try:
        msgspec.convert(value, Budget).check(where)
    except msgspec.ValidationError as error:
        raise AgentInvalid(f"{where}: {error}", hint='for example {"tokens": 100_000, "usd": 2.5}') from error
    except InvalidValue as error:
        raise AgentInvalid(error.message, hint=error.hint) from error


_CHECKS = {"retry": _check_retry, "budget": _check_budget}
