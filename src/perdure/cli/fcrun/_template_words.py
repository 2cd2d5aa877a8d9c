"""The words of Go's templates: text and actions, and what stands in an action."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from perdure.errors import InvalidValue

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


@dataclass(frozen=True)
class Token:
    """One word of an action: a string, number, field, variable, word or sign."""

    kind: str
    text: str
    after_space: bool


class Reader:
    """Goes through the words of one command."""

    def __init__(self, words: Sequence[Token]) -> None:
        self._words, self._at = words, 0

    def more(self) -> bool:
        return self._at < len(self._words)

    def take(self) -> Token:
        self._at += 1
        return self._words[self._at - 1]

    def following_field(self) -> Token | None:
        """The next token where it is a field of what was read last: with no space between."""
        if self.more() and (token := self._words[self._at]).kind == "field" and not token.after_space:
            return self.take()
        return None

    def until_closed(self) -> list[Token]:
        """What is in the parenthesis that was opened last. Raises InvalidValue."""
        taken: list[Token] = []
        depth = 1
        while self.more():
            token = self.take()
            depth += (token.text == "(") - (token.text == ")") if token.kind == "sign" else 0
            if depth == 0:
                return taken
            taken.append(token)
        raise wrong("a ) is missing")


def pieces(text: str) -> Iterator[tuple[str, str]]:
    """("text", TEXT) and ("action", what is between the braces)."""
    place, trims = 0, False
    for match in _ACTION.finditer(text):
        before = text[place : match.start()]
        before = before.lstrip() if trims else before
        if "{{" in before:
            raise wrong("a }} is missing")
        if before := before.rstrip() if match[1] else before:
            yield "text", before
        content = match[2].strip()
        if not (content.startswith("/*") and content.endswith("*/")):
            yield "action", content
        place, trims = match.end(), bool(match[3])
    rest = text[place:].lstrip() if trims else text[place:]
    if "{{" in rest:
        raise wrong("a }} is missing")
    if rest:
        yield "text", rest


def tokens(text: str) -> Iterator[Token]:
    """Of one action. Raises InvalidValue."""
    place = 0
    while place < len(text.rstrip()):
        match = _TOKEN.match(text, place)
        if match is None:
            raise wrong(f"{text[place:].strip()!r} does not read")
        kind = match.lastgroup or ""
        yield Token(kind, match[kind], match.start(kind) > place)
        place = match.end()


def unquoted(text: str) -> str:
    """What a string in quotes or backticks says. Raises InvalidValue."""
    if text.startswith("`"):
        return text[1:-1]
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        raise wrong(f"the string {text} does not read") from None


def wrong(what: str, hint: str = "Templates are Go's: https://docs.docker.com/engine/cli/formatting/") -> InvalidValue:
    """The error to raise for a template."""
    return InvalidValue(f"--format: {what}", hint=hint)
