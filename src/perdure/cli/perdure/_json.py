"""JSON values on the command line."""

from __future__ import annotations

import json
import sys
from typing import Any

from perdure.errors import InvalidValue


def argument(text: str, what: str) -> Any:
    """The JSON value ``text``, of the file ``@FILE``, or of stdin (``-``). ``InvalidValue`` shows where it is wrong."""
    source = text
    if text == "-":
        text, what = sys.stdin.read(), f"{what} (stdin)"
    elif text.startswith("@"):
        what = f"{what} ({text[1:]})"
        try:
            with open(text[1:], encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidValue(f"{what} cannot be read: {error}") from error
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        hint = """write, for example, '{"topic": "owls"}', or '"text"' for a string"""
        shown = f": {source[:60]}" if source == text else ""
        raise InvalidValue(f"{what} is not JSON: {error}{shown}", hint=hint) from error


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")
