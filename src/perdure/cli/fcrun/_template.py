"""Go's templates, as far as people type them for ``docker --format``: https://pkg.go.dev/text/template.

Actions ``{{...}}`` with ``-`` to trim; fields, variables, pipelines, parentheses; ``if``, ``range``, ``with``,
``else``, ``end``, comments; the functions of FUNCTIONS. What is not known is an InvalidValue that says what, never an
empty text.

Values are those of JSON: mappings, lists, strings, numbers, booleans, None; a field may also be a function of strings
(``.Label "name"``). A mapping's unknown field is refused, naming what there is, unless it is an ``Open`` one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perdure.cli.fcrun._format import Open
from perdure.errors import InvalidValue

Evaluate = Callable[["Scope"], Any]
Function = Callable[..., Any]
Write = Callable[["Scope", list[str]], None]

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)
      | (?P<number>[+-]?\d+(?:\.\d+)?)
      | (?P<field>\.\w+)
      | (?P<variable>\$\w*)
      | (?P<word>\w+)
      | (?P<sign>:=|=|\||\(|\)|,|\.)
    )""",
    re.VERBOSE,
)
_NO_VALUE = "<no value>"


@dataclass
class Scope:
    """``dot``: what ``.`` is here."""

    dot: Any
    root: Any
    functions: Mapping[str, Function]
    variables: dict[str, Any] = field(default_factory=dict)

    def inside(self, dot: Any) -> Scope:
        return Scope(dot, self.root, self.functions, dict(self.variables))


class Template:
    """Parsed once, filled for each value. Raises InvalidValue for what it does not understand."""

    def __init__(self, text: str, functions: Mapping[str, Function] | None = None) -> None:
        self._functions = FUNCTIONS if functions is None else functions
        parser = _Parser(text, self._functions)
        self._body = parser.block(())
        self.fields = parser.fields  # the first word of each field of the value itself

    def fill(self, value: Any) -> str:
        out: list[str] = []
        self._body(Scope(value, value, self._functions), out)
        return "".join(out)


# -- parsing ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    after_space: bool


class _Parser:
    def __init__(self, text: str, functions: Mapping[str, Function]) -> None:
        self._functions = functions
        self._pieces = list(_split(text))
        self._at = 0
        self.fields: list[str] = []
        self._depth = 0  # of what changes the dot
        self._ended_with: list[_Token] = []

    def block(self, ends: tuple[str, ...]) -> Write:
        """Up to one of these words (``_ended_with`` is what it was), or to the end of the text where there is none."""
        parts: list[Write] = []
        while self._at < len(self._pieces):
            kind, text = self._pieces[self._at]
            self._at += 1
            if kind == "text":
                parts.append(_literal(text))
                continue
            words = list(_tokens(text))
            first = words[0].text if words and words[0].kind == "word" else ""
            if first in ends:
                self._ended_with = words
                return _sequence(parts)
            parts.append(self._action(first, words, text))
        if ends:
            raise _wrong("there is no {{end}}")
        return _sequence(parts)

    def _action(self, first: str, words: list[_Token], text: str) -> Write:
        if not words:
            raise _wrong("{{}} is empty")
        if first in ("if", "with"):
            return self._condition(words[1:], changes_dot=first == "with")
        if first == "range":
            return self._range(words[1:])
        if first in ("else", "end"):
            raise _wrong(f"{{{{{first}}}}} has no beginning")
        if first in ("define", "template", "block", "break", "continue"):
            raise _wrong(f"{{{{{first}}}}} is not supported")
        if len(words) > 2 and words[0].kind == "variable" and words[1].text in (":=", "="):
            return _assign(words[0].text, self._pipeline(words[2:]))
        evaluate = self._pipeline(words)
        return lambda scope, out: out.append(printed(evaluate(scope)))

    def _condition(self, words: list[_Token], *, changes_dot: bool) -> Write:
        evaluate = self._pipeline(words)
        self._depth += changes_dot
        body = self.block(("else", "end"))
        self._depth -= changes_dot
        otherwise = self._otherwise()

        def write(scope: Scope, out: list[str]) -> None:
            value = evaluate(scope)
            if not is_true(value):
                otherwise(scope, out)
            else:
                body(scope.inside(value) if changes_dot else scope, out)

        return write

    def _otherwise(self) -> Write:
        ended = self._ended_with
        if ended[0].text == "end":
            return _sequence([])
        if len(ended) > 1 and ended[1].text in ("if", "with"):
            return self._condition(ended[2:], changes_dot=ended[1].text == "with")
        if len(ended) > 1:
            raise _wrong(f"{{{{else {ended[1].text}}}}} is not supported")
        return self.block(("end",))

    def _range(self, words: list[_Token]) -> Write:
        names: list[str] = []
        signs = [token.text for token in words]
        if ":=" in signs:
            given = words[: signs.index(":=")]
            names = [token.text for token in given if token.kind == "variable"]
            words = words[len(given) + 1 :]
            if not 1 <= len(names) <= 2:
                raise _wrong("range takes one or two variables")
        evaluate = self._pipeline(words)
        self._depth += 1
        body = self.block(("else", "end"))
        self._depth -= 1
        otherwise = self._otherwise()

        def write(scope: Scope, out: list[str]) -> None:
            pairs = _pairs(evaluate(scope))
            for key, value in pairs:
                inner = scope.inside(value)
                inner.variables |= dict(zip(names, (key, value)[2 - len(names) :], strict=True))
                body(inner, out)
            if not pairs:
                otherwise(scope, out)

        return write

    def _pipeline(self, words: list[_Token]) -> Evaluate:
        if not words:
            raise _wrong("a value is missing")
        commands: list[list[_Token]] = [[]]
        depth = 0
        for token in words:
            depth += (token.text == "(") - (token.text == ")") if token.kind == "sign" else 0
            if token.kind == "sign" and token.text == "|" and depth == 0:
                commands.append([])
            else:
                commands[-1].append(token)
        evaluate = self._command(commands[0], None)
        for command in commands[1:]:
            evaluate = self._command(command, evaluate)
        return evaluate

    def _command(self, words: list[_Token], piped: Evaluate | None) -> Evaluate:
        """A function or a value, with what it is given; what is piped in comes last."""
        if not words:
            raise _wrong("a value is missing beside |")
        reader = _Reader(words)
        head = reader.take()
        if head.kind == "word" and head.text not in ("true", "false", "nil"):
            if head.text not in self._functions:
                raise _wrong(f"there is no function {head.text!r}", f"Known: {', '.join(sorted(self._functions))}")
            name: str | None = head.text
            callee: Evaluate | None = None
        else:
            name, callee = None, self._operand(head, reader)
        arguments: list[Evaluate] = []
        while reader.more():
            arguments.append(self._operand(reader.take(), reader))
        if piped is not None:
            arguments.append(piped)
        if name is not None:
            return _called(name, arguments)
        assert callee is not None
        return _applied(callee, arguments) if arguments else _settled(callee)

    def _operand(self, head: _Token, reader: _Reader) -> Evaluate:
        if head.kind == "string":
            return _constant(_unquoted(head.text))
        if head.kind == "number":
            return _constant(float(head.text) if "." in head.text else int(head.text))
        if head.kind == "word":
            constants: dict[str, Any] = {"true": True, "false": False, "nil": None}
            if head.text in constants:
                return _constant(constants[head.text])
            if head.text in self._functions:
                return _called(head.text, [])
            raise _wrong(f"there is no function {head.text!r}", f"Known: {', '.join(sorted(self._functions))}")
        if head.kind == "variable":
            return self._chain(_variable(head.text), reader)
        if head.kind == "field":
            if not self._depth:
                self.fields.append(head.text[1:])
            return self._chain(_field(lambda scope: scope.dot, head.text[1:]), reader)
        if head.text == ".":
            return lambda scope: scope.dot
        if head.text == "(":
            return self._chain(self._pipeline(reader.until_closed()), reader)
        raise _wrong(f"{head.text!r} stands at a wrong place")

    def _chain(self, start: Evaluate, reader: _Reader) -> Evaluate:
        while (token := reader.following_field()) is not None:
            start = _field(start, token.text[1:])
        return start


class _Reader:
    def __init__(self, words: Sequence[_Token]) -> None:
        self._words, self._at = words, 0

    def more(self) -> bool:
        return self._at < len(self._words)

    def take(self) -> _Token:
        self._at += 1
        return self._words[self._at - 1]

    def following_field(self) -> _Token | None:
        """The next token where it is a field of what was read last: with no space between."""
        if self.more() and (token := self._words[self._at]).kind == "field" and not token.after_space:
            return self.take()
        return None

    def until_closed(self) -> list[_Token]:
        taken: list[_Token] = []
        depth = 1
        while self.more():
            token = self.take()
            depth += (token.text == "(") - (token.text == ")") if token.kind == "sign" else 0
            if depth == 0:
                return taken
            taken.append(token)
        raise _wrong("a ) is missing")


def _split(text: str) -> Iterator[tuple[str, str]]:
    """("text", TEXT) and ("action", what is between the braces)."""
    place, trims = 0, False
    for match in _ACTION.finditer(text):
        before = text[place : match.start()]
        before = before.lstrip() if trims else before
        if "{{" in before:
            raise _wrong("a }} is missing")
        if before := before.rstrip() if match[1] else before:
            yield "text", before
        content = match[2].strip()
        if not (content.startswith("/*") and content.endswith("*/")):
            yield "action", content
        place, trims = match.end(), bool(match[3])
    rest = text[place:].lstrip() if trims else text[place:]
    if "{{" in rest:
        raise _wrong("a }} is missing")
    if rest:
        yield "text", rest


def _tokens(text: str) -> Iterator[_Token]:
    place = 0
    while place < len(text.rstrip()):
        match = _TOKEN.match(text, place)
        if match is None:
            raise _wrong(f"{text[place:].strip()!r} does not read")
        kind = match.lastgroup or ""
        yield _Token(kind, match[kind], match.start(kind) > place)
        place = match.end()


def _unquoted(text: str) -> str:
    if text.startswith("`"):
        return text[1:-1]
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        raise _wrong(f"the string {text} does not read") from None


def _wrong(what: str, hint: str = "Templates are Go's: https://docs.docker.com/engine/cli/formatting/") -> InvalidValue:
    return InvalidValue(f"--format: {what}", hint=hint)


# -- evaluating -------------------------------------------------------------------------------------------------------
def _literal(text: str) -> Write:
    return lambda scope, out: out.append(text)


def _sequence(parts: list[Write]) -> Write:
    def write(scope: Scope, out: list[str]) -> None:
        for part in parts:
            part(scope, out)

    return write


def _assign(name: str, evaluate: Evaluate) -> Write:
    def write(scope: Scope, out: list[str]) -> None:
        scope.variables[name] = evaluate(scope)

    return write


def _constant(value: Any) -> Evaluate:
    return lambda scope: value


def _variable(name: str) -> Evaluate:
    def evaluate(scope: Scope) -> Any:
        if name == "$":
            return scope.root
        if name not in scope.variables:
            raise _wrong(f"there is no variable {name}")
        return scope.variables[name]

    return evaluate


def _field(start: Evaluate, name: str) -> Evaluate:
    def evaluate(scope: Scope) -> Any:
        value = start(scope)
        value = value() if callable(value) else value
        if isinstance(value, Open):
            return value.get(name)
        if not isinstance(value, Mapping):
            raise _wrong(f"there is no field {name!r} in {printed(value)!r}", "It is no object.")
        if name not in value:
            import difflib

            known = sorted(map(str, value))
            lower = {each.lower(): each for each in known}
            near = [lower[each] for each in difflib.get_close_matches(name.lower(), list(lower), n=1)]
            hint = f"Did you mean .{near[0]}? " if near else ""
            raise _wrong(f"there is no field {name!r}", f"{hint}Fields here: {', '.join(known) or 'none'}")
        return value[name]

    return evaluate


def _settled(evaluate: Evaluate) -> Evaluate:
    """Where it is a function of its own, it is called with nothing."""

    def settle(scope: Scope) -> Any:
        value = evaluate(scope)
        return value() if callable(value) else value

    return settle


def _called(name: str, arguments: Sequence[Evaluate]) -> Evaluate:
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


def _applied(callee: Evaluate, arguments: Sequence[Evaluate]) -> Evaluate:
    def evaluate(scope: Scope) -> Any:
        function = callee(scope)
        if not callable(function):
            raise _wrong(f"{printed(function)!r} is no function, and takes nothing")
        return _call("it", function, [argument(scope) for argument in arguments])

    return evaluate


def _call(name: str, function: Function, arguments: Sequence[Any]) -> Any:
    try:
        return function(*arguments)
    except InvalidValue:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        shown = ", ".join(printed(argument) for argument in arguments)
        raise _wrong(f"{name} cannot take ({shown}): {error}") from None


def is_true(value: Any) -> bool:
    """As Go has it: neither false, nor 0, nor nothing, nor empty."""
    return bool(value)


def printed(value: Any) -> str:
    """As Go prints it with %v."""
    if value is None:
        return _NO_VALUE
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{printed(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(printed, value)) + "]"
    return str(value)


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [(key, value[key]) for key in sorted(value)]
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return [(number, number) for number in range(value)]
    raise _wrong(f"range cannot go through {printed(value)!r}")


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(str(key), "")
        elif isinstance(value, list | tuple | str) and isinstance(key, int) and 0 <= key < len(value):
            value = value[key]
        else:
            raise ValueError(f"there is no {printed(key)} in it")
    return value


def _compared(test: Callable[[Any, Any], bool]) -> Function:
    def compare(first: Any, *others: Any) -> bool:
        if not others:
            raise ValueError("there is nothing to compare it with")
        return any(test(first, other) for other in others)

    return compare


_VERB = re.compile(r"%(-?\d*(?:\.\d+)?)([vsdqtfgx%])")


def _printf(form: str, *values: Any) -> str:
    left = list(values)

    def replace(match: re.Match[str]) -> str:
        width, verb = match.groups()
        if verb == "%":
            return "%"
        if not left:
            raise ValueError("too few values")
        value = left.pop(0)
        if verb == "q":
            return f"%{width}s" % json.dumps(printed(value), ensure_ascii=False)
        return f"%{width}{verb}" % value if verb in "dfgx" else f"%{width}s" % printed(value)

    text = _VERB.sub(replace, form)
    if left:
        raise ValueError("too many values")
    return text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _truncate(text: str, length: int) -> str:
    return text[:length]


def _pad(text: str, before: int, after: int) -> str:
    return " " * before + text + " " * after if text else ""


FUNCTIONS: Mapping[str, Function] = {
    # docker's
    "json": _json,
    "join": lambda values, between: between.join(map(printed, values)),
    "split": lambda text, between: text.split(between),
    "lower": lambda text: printed(text).lower(),
    "upper": lambda text: printed(text).upper(),
    "title": lambda text: " ".join(word[:1].upper() + word[1:] for word in printed(text).split(" ")),
    "pad": _pad,
    "truncate": _truncate,
    "println": lambda *values: " ".join(map(printed, values)) + "\n",
    # Go's
    "print": lambda *values: " ".join(map(printed, values)),
    "printf": _printf,
    "len": len,
    "index": _index,
    "slice": lambda value, start=0, end=None: value[start:end],
    "not": lambda value: not is_true(value),
    "and": lambda *values: values,
    "or": lambda *values: values,
    "eq": _compared(lambda one, other: bool(one == other)),
    "ne": lambda one, other: one != other,
    "lt": lambda one, other: one < other,
    "le": lambda one, other: one <= other,
    "gt": lambda one, other: one > other,
    "ge": lambda one, other: one >= other,
}

# what they do to the headings of a table, which are no values
HEADING_FUNCTIONS: Mapping[str, Function] = {
    **FUNCTIONS,
    "json": lambda value: value,
    "split": lambda text, between: [text],
    "join": lambda value, between: value,
    "lower": lambda text: text,
    "upper": lambda text: text,
    "title": lambda text: text,
    "truncate": lambda text, length: text,
    "index": lambda value, *keys: value,
    "len": lambda value: value,
}
