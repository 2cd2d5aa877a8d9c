"""Hooks as values: whom to tell of which states."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

from perdure.errors import InvalidValue
from perdure.model import Frozen, RunState
from perdure.runs.states import TERMINAL

ENDS = sorted(TERMINAL)


class Hook(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom to tell, and of which states. One of ``url`` and ``command``."""

    url: str = ""
    command: list[str] = msgspec.field(default_factory=list)  # of the server's settings only
    states: list[str] = msgspec.field(default_factory=lambda: list(ENDS))
    secret: str = ""  # deliveries are signed with it

    def check(self) -> None:
        """Raises InvalidValue naming the field."""
        if bool(self.url) == bool(self.command):
            raise InvalidValue("a hook has either a url or a command")
        if self.url and (urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname):
            raise InvalidValue(f"not the url of a hook: {self.url!r}", hint="It begins with http:// or https://.")
        if unknown := [state for state in self.states if state not in set(RunState)]:
            raise InvalidValue(f"a hook for no state: {unknown[0]!r}", hint="States are " + ", ".join(RunState) + ".")


class RunHook(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A hook that a run brings along. It is signed with the server's own secret: the log holds none."""

    url: str
    states: list[str] = msgspec.field(default_factory=lambda: list(ENDS))

    def check(self) -> None:
        Hook(url=self.url, states=self.states).check()
