"""What the parts of Go's templates do when they are filled: each is made of words once, and asked for every value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perdure.cli.fcrun._format import Open
from perdure.cli.fcrun._template_values import Function, is_true, printed
from perdure.cli.fcrun._template_words import wrong
from perdure.errors import InvalidValue

Evaluate = Callable[["Scope"], Any]
Write = Callable[["Scope", list[str]], None]


@dataclass
class Scope:
    """``dot``: what ``.`` is here."""

    dot: Any
    root: Any
    functions: Mapping[str, Function]
    variables: dict[str, Any] = field(default_factory=dict)

    def inside(self, dot: Any) -> Scope:
        return Scope(dot, self.root, self.functions, dict(self.variables))


def literal(text: str) -> Write:
    return lambda scope, out: out.append(text)


def sequence(parts: list[Write]) -> Write:
    def write(scope: Scope, out: list[str]) -> None:
        for part in parts:
            part(scope, out)

    return write


def assign(name: str, evaluate: Evaluate) -> Write:
    def write(scope: Scope, out: list[str]) -> None:
        scope.variables[name] = evaluate(scope)

    return write


def constant(value: Any) -> Evaluate:
    return lambda scope: value


def variable(name: str) -> Evaluate:
    def evaluate(scope: Scope) -> Any:
        if name == "$":
            return scope.root
        if name not in scope.variables:
            raise wrong(f"there is no variable {name}")
        return scope.variables[name]

    return evaluate


def field_of(start: Evaluate, name: str) -> Evaluate:
    """Raises InvalidValue when it is filled: there is none, or what should have it is no object."""

    def evaluate(scope: Scope) -> Any:
        value = start(scope)
        value = value() if callable(value) else value
        if isinstance(value, Open):
            return value.get(name)
        if not isinstance(value, Mapping):
            raise wrong(f"there is no field {name!r} in {printed(value)!r}", "It is no object.")
        if name not in value:
            import difflib

            known = sorted(map(str, value))
            lower = {each.lower(): each for each in known}
            near = [lower[each] for each in difflib.get_close_matches(name.lower(), list(lower), n=1)]
            hint = f"Did you mean .{near[0]}? " if near else ""
            raise wrong(f"there is no field {name!r}", f"{hint}Fields here: {', '.join(known) or 'none'}")
        return value[name]

    return evaluate


def settled(evaluate: Evaluate) -> Evaluate:
    """Where it is a function of its own, it is called with nothing."""

    def settle(scope: Scope) -> Any:
        value = evaluate(scope)
        return value() if callable(value) else value

    return settle


def called(name: str, arguments: Sequence[Evaluate]) -> Evaluate:
    """A known function, by its name."""

    def evaluate(scope: Scope) -> Any:
        if name in ("and", "or"):  # the only ones that look no further than they must
            value: Any = None
            for argument in arguments:
                value = argument(scope)
                if is_true(value) is (name == "or"):
                    break
            return value
        return _call(name, scope.functions[name], [argument(scope) for argument in arguments])

    return evaluate


def applied(callee: Evaluate, arguments: Sequence[Evaluate]) -> Evaluate:
    """A value that must be a function of its own (``.Label``)."""

    def evaluate(scope: Scope) -> Any:
        function = callee(scope)
        if not callable(function):
            raise wrong(f"{printed(function)!r} is no function, and takes nothing")
        return _call("it", function, [argument(scope) for argument in arguments])

    return evaluate


def _call(name: str, function: Function, arguments: Sequence[Any]) -> Any:
    try:
        return function(*arguments)
    except InvalidValue:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        shown = ", ".join(printed(argument) for argument in arguments)
        raise wrong(f"{name} cannot take ({shown}): {error}") from None


def pairs_of(value: Any) -> list[tuple[Any, Any]]:
    """What ``range`` goes through: (index or key, value)."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [(key, value[key]) for key in sorted(value)]
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return [(number, number) for number in range(value)]
    raise wrong(f"range cannot go through {printed(value)!r}")
