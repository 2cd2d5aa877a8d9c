"""What a program asks to wait for: the body of ``/perdure/v1/wait``, checked, as a wait."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from perdure.errors import InvalidValue
from perdure.model import Frozen, new_id
from perdure.runs.forms import Field, check_form
from perdure.runs.moments import moment
from perdure.runs.waits import Wait

LONGEST_S = 1e10  # 300 years
SET_MAX = 1000
SHOWN = 80  # of a command, where its wait is named
KINDS = ("time", "signal", "approval", "child", "fork")


class Asking(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One wait. A time is in ``seconds``, or ``until`` a moment: ISO 8601 with its time zone, or seconds since 1970."""

    kind: str
    name: str = ""
    prompt: str = ""
    seconds: float | None = None
    until: float | str | None = None
    timeout_s: float | None = None
    show: Any = None
    form: list[Field] = msgspec.field(default_factory=list)
    function: str = ""  # of a child: the agent, in the same file
    command: list[str] = msgspec.field(default_factory=list)  # of a child: a program instead
    input: Any = None
    image: str = ""  # its parent's
    memory_mib: int = 0
    vcpus: int = 0
    run: str = ""  # a fork

    def check(self) -> None:
        """Raises InvalidValue naming the field."""
        if self.kind not in KINDS:
            raise InvalidValue(f"no such kind of wait: {self.kind!r}", hint=f"It is one of {', '.join(KINDS)}.")
        if self.kind == "time" and (self.seconds is None) == (self.until is None):
            raise InvalidValue('a wait for a time needs "seconds", or "until"')
        if self.kind == "signal" and not self.name:
            raise InvalidValue('a wait for a signal needs its "name"')
        if self.kind == "child":
            self._check_child()
        if self.kind == "fork" and not self.run:
            raise InvalidValue('a wait for a fork needs its id: "run"')
        if self.form and self.kind != "approval":
            raise InvalidValue(f"a wait for a {self.kind} has no form")
        check_form(self.form)
        for name, seconds in (("seconds", self.seconds), ("timeout_s", self.timeout_s)):
            if seconds is not None and not 0 <= seconds <= LONGEST_S:
                raise InvalidValue(f"{name} is not a number of seconds from 0 on: {seconds}")
        if self.until is not None:
            moment(self.until, "until")

    def _check_child(self) -> None:
        if bool(self.function) == bool(self.command):
            hint = '"function" is an agent of the same file, "command" a program and its arguments.'
            raise InvalidValue("a child is either a function or a command", hint=hint)
        if self.command and (not self.command[0] or any("\0" in word for word in self.command)):
            raise InvalidValue(f"not a command: {self.command[0]!r}", hint="It is a program, and its arguments.")
        if self.command and self.input is not None:
            raise InvalidValue("a command has no input", hint="Give it arguments.")
        if self.function and not self.function.isidentifier():
            raise InvalidValue(f"not the name of a function: {self.function!r}", hint='"function" is the agent.')
        for name in ("memory_mib", "vcpus"):
            if getattr(self, name) < 0:
                raise InvalidValue(f"{name} is negative: {getattr(self, name)}")

    def start(self) -> dict[str, Any]:
        """What a child is started with."""
        return {name: getattr(self, name) for name in ("function", "command", "input", "image", "memory_mib", "vcpus")}

    def wait(self, key: str, now: float, *, of: str = "", index: int = 0) -> Wait:
        """The wait of the call ``key``, begun ``now``; or part ``index`` of the set ``of``."""
        seconds = self.seconds if self.kind == "time" else self.timeout_s
        until = moment(self.until, "until") if self.until is not None and self.kind == "time" else None
        return Wait(
            id=new_id(),
            key=key,
            kind=self.kind,  # type: ignore[arg-type]  # check knows the kinds
            name=self.name or self.prompt or self.function or self.run or " ".join(self.command)[:SHOWN],
            child=new_id() if self.kind == "child" else "",
            run=self.run if self.kind == "fork" else "",
            since=now,
            until=until if seconds is None else now + seconds,
            absolute=until is not None,
            show=self.show,
            form=self.form,
            of=of,
            index=index,
        )


class SetAsking(Frozen, frozen=True, kw_only=True):
    """Body of ``/perdure/v1/wait/set``: many waits at once, until ``all`` of them are over or ``any``."""

    mode: Literal["all", "any"]
    waits: list[Asking]
    timeout_s: float | None = None

    def check(self) -> None:
        """Raises InvalidValue naming the wait and its field."""
        if not 1 <= len(self.waits) <= SET_MAX:
            raise InvalidValue(f"a set of {len(self.waits)} waits", hint=f"It has 1 to {SET_MAX}.")
        for index, asking in enumerate(self.waits):
            try:
                asking.check()
            except InvalidValue as error:
                raise InvalidValue(f"waits[{index}]: {error.message}", hint=error.hint) from None
            if asking.timeout_s is not None:
                hint = "Give it to the set, or put a wait for a time into it."
                raise InvalidValue(f"waits[{index}]: a wait in a set has no timeout_s of its own", hint=hint)
        if self.timeout_s is not None and not 0 <= self.timeout_s <= LONGEST_S:
            raise InvalidValue(f"timeout_s is not a number of seconds from 0 on: {self.timeout_s}")

    def wait(self, key: str, now: float) -> tuple[Wait, list[Wait]]:
        """The set, and its parts."""
        until = None if self.timeout_s is None else now + self.timeout_s
        whole = Wait(id=new_id(), key=key, kind=self.mode, since=now, until=until)
        return whole, [asking.wait(key, now, of=whole.id, index=i) for i, asking in enumerate(self.waits)]
