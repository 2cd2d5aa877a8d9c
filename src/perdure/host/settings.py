"""``HOME/settings.toml``: what a person may set. Each daemon reads the tables of it that are its own.

What is said of a wrong line names the file, the table, the key, what is there, and what may be there.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from perdure.errors import InvalidValue
from perdure.host.paths import Home

TABLES = (
    "budgets",
    "hooks",
    "node",
    "prices",
    "providers",
    "retention",
    "runs",
    "secrets",
    "server",
    "servers",
    "workers",
)
KEYS = ("provider",)  # beside the tables

Number = TypeVar("Number", int, float)


def place(home: Home) -> Path:
    return home.root / "settings.toml"


def document(home: Home) -> dict[str, Any]:
    """The whole file; {}: there is none. InvalidValue: it is not TOML, or has a table that nobody reads."""
    try:
        found = tomllib.loads(place(home).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{place(home)} is not TOML: {error}", hint="correct it, or remove it") from error
    if unknown := sorted(found.keys() - {*TABLES, *KEYS}):
        known = ", ".join((*KEYS, *(f"[{name}]" for name in TABLES)))
        what = f"table [{unknown[0]}]" if isinstance(found[unknown[0]], dict) else f"setting {unknown[0]!r}"
        raise InvalidValue(f"{place(home)}: unknown {what}", hint=f"known are {known}")
    return found


class Table:
    """One table of the file. Of the environment's variables those come first that are set to something."""

    def __init__(
        self, home: Home, name: str, known: Mapping[str, str], environ: Mapping[str, str] | None = None
    ) -> None:
        """known: its keys, each with its variable (none: ""). InvalidValue names the table, or an unknown key."""
        self._env = os.environ if environ is None else environ
        self._known = known
        self._title = f"{place(home)}: [{name}]"
        self.values: dict[str, Any] = document(home).get(name, {})  # what the file has
        if not isinstance(self.values, dict):
            raise InvalidValue(f"{place(home)}: {name} is not a table", hint=f"write a [{name}] section")
        if unknown := sorted(self.values.keys() - known):
            hint = ("known is " if len(known) == 1 else "known are ") + ", ".join(known)
            raise InvalidValue(f"{self._title}: unknown setting {unknown[0]!r}", hint=hint)

    def where(self, key: str) -> str:
        """Who says what is in force: the variable, or the line of the file."""
        return self._known[key] if self._given(key) else f"{self._title}: {key}"

    def number(self, key: str, usual: Number, low: float, high: float, what: str = "a number") -> Number:
        """A whole one, unless the usual one is not. what: for example "a number of seconds"."""
        given = self._given(key)
        found = _number(given) if given else self.values.get(key, usual)
        kinds = (int, float) if isinstance(usual, float) else (int,)
        if type(found) not in kinds or not low <= found <= high:
            hint = f"It is {what} from {low:.15g} to {high:.15g}; usual is {usual:.15g}."
            raise InvalidValue(f"{self.where(key)} is {found!r}", hint=hint)
        return type(usual)(found)

    def text(self, key: str) -> str:
        """Nothing where nothing is said."""
        found = self._given(key) or self.values.get(key, "")
        if not isinstance(found, str):
            raise InvalidValue(f"{self.where(key)} is {found!r}: not a text", hint=f'{key} = "..."')
        return found

    def _given(self, key: str) -> str:
        variable = self._known[key]
        return self._env.get(variable, "") if variable else ""


def _number(text: str) -> Any:
    """Of decimal digits, with at most one point in them; else the text."""
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text, re.ASCII):
        return float(text) if "." in text else int(text)
    return text
