"""Go's templates, as far as people type them for ``docker --format``: https://pkg.go.dev/text/template.

Actions ``{{...}}`` with ``-`` to trim; fields, variables, pipelines, parentheses; ``if``, ``range``, ``with``,
``else``, ``end``, comments; the functions of ``_template_values``. What is not known is an InvalidValue that says what,
never an empty text.

Values are those of JSON: mappings, lists, strings, numbers, booleans, None; a field may also be a function of strings
(``.Label "name"``). A mapping's unknown field is refused, naming what there is, unless it is an ``Open`` one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perdure.cli.fcrun._template_parts import (
    Evaluate,
    Scope,
    Write,
    applied,
    assign,
    called,
    constant,
    field_of,
    literal,
    pairs_of,
    sequence,
    settled,
    variable,
)
from perdure.cli.fcrun._template_values import FUNCTIONS, Function, is_true, printed
from perdure.cli.fcrun._template_words import Reader, Token, pieces, tokens, unquoted, wrong


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


class _Parser:
    def __init__(self, text: str, functions: Mapping[str, Function]) -> None:
        self._functions = functions
        self._pieces = list(pieces(text))
        self._at = 0
        self.fields: list[str] = []
        self._depth = 0  # of what changes the dot
        self._ended_with: list[Token] = []

    def block(self, ends: tuple[str, ...]) -> Write:
        """Up to one of these words (``_ended_with`` is what it was), or to the end of the text where there is none."""
        parts: list[Write] = []
        while self._at < len(self._pieces):
            kind, text = self._pieces[self._at]
            self._at += 1
            if kind == "text":
                parts.append(literal(text))
                continue
            words = list(tokens(text))
            first = words[0].text if words and words[0].kind == "word" else ""
            if first in ends:
                self._ended_with = words
                return sequence(parts)
            parts.append(self._action(first, words, text))
        if ends:
            raise wrong("there is no {{end}}")
        return sequence(parts)

    def _action(self, first: str, words: list[Token], text: str) -> Write:
        if not words:
            raise wrong("{{}} is empty")
        if first in ("if", "with"):
            return self._condition(words[1:], changes_dot=first == "with")
        if first == "range":
            return self._range(words[1:])
        if first in ("else", "end"):
            raise wrong(f"{{{{{first}}}}} has no beginning")
        if first in ("define", "template", "block", "break", "continue"):
            raise wrong(f"{{{{{first}}}}} is not supported")
        if len(words) > 2 and words[0].kind == "variable" and words[1].text in (":=", "="):
            return assign(words[0].text, self._pipeline(words[2:]))
        evaluate = self._pipeline(words)
        return lambda scope, out: out.append(printed(evaluate(scope)))

    def _condition(self, words: list[Token], *, changes_dot: bool) -> Write:
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
            return sequence([])
        if len(ended) > 1 and ended[1].text in ("if", "with"):
            return self._condition(ended[2:], changes_dot=ended[1].text == "with")
        if len(ended) > 1:
            raise wrong(f"{{{{else {ended[1].text}}}}} is not supported")
        return self.block(("end",))

    def _range(self, words: list[Token]) -> Write:
        names: list[str] = []
        signs = [token.text for token in words]
        if ":=" in signs:
            given = words[: signs.index(":=")]
            names = [token.text for token in given if token.kind == "variable"]
            words = words[len(given) + 1 :]
            if not 1 <= len(names) <= 2:
                raise wrong("range takes one or two variables")
        evaluate = self._pipeline(words)
        self._depth += 1
        body = self.block(("else", "end"))
        self._depth -= 1
        otherwise = self._otherwise()

        def write(scope: Scope, out: list[str]) -> None:
            pairs = pairs_of(evaluate(scope))
            for key, value in pairs:
                inner = scope.inside(value)
                inner.variables |= dict(zip(names, (key, value)[2 - len(names) :], strict=True))
                body(inner, out)
            if not pairs:
                otherwise(scope, out)

        return write

    def _pipeline(self, words: list[Token]) -> Evaluate:
        if not words:
            raise wrong("a value is missing")
        commands: list[list[Token]] = [[]]
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

    def _command(self, words: list[Token], piped: Evaluate | None) -> Evaluate:
        """A function or a value, with what it is given; what is piped in comes last."""
        if not words:
            raise wrong("a value is missing beside |")
        reader = Reader(words)
        head = reader.take()
        if head.kind == "word" and head.text not in ("true", "false", "nil"):
            if head.text not in self._functions:
                raise wrong(f"there is no function {head.text!r}", f"Known: {', '.join(sorted(self._functions))}")
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
            return called(name, arguments)
        assert callee is not None
        return applied(callee, arguments) if arguments else settled(callee)

    def _operand(self, head: Token, reader: Reader) -> Evaluate:
        if head.kind == "string":
            return constant(unquoted(head.text))
        if head.kind == "number":
            return constant(float(head.text) if "." in head.text else int(head.text))
        if head.kind == "word":
            constants: dict[str, Any] = {"true": True, "false": False, "nil": None}
            if head.text in constants:
                return constant(constants[head.text])
            if head.text in self._functions:
                return called(head.text, [])
            raise wrong(f"there is no function {head.text!r}", f"Known: {', '.join(sorted(self._functions))}")
        if head.kind == "variable":
            return self._chain(variable(head.text), reader)
        if head.kind == "field":
            if not self._depth:
                self.fields.append(head.text[1:])
            return self._chain(field_of(lambda scope: scope.dot, head.text[1:]), reader)
        if head.text == ".":
            return lambda scope: scope.dot
        if head.text == "(":
            return self._chain(self._pipeline(reader.until_closed()), reader)
        raise wrong(f"{head.text!r} stands at a wrong place")

    def _chain(self, start: Evaluate, reader: Reader) -> Evaluate:
        while (token := reader.following_field()) is not None:
            start = field_of(start, token.text[1:])
        return start
