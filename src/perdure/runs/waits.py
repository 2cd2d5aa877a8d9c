"""What runs are parked on. Pure: the open waits and the kept signals are a fold over the entries of a branch."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any, Literal

import msgspec

from perdure.errors import InvalidValue
from perdure.model import Frozen
from perdure.runs.forms import Field

WaitKind = Literal["time", "signal", "approval", "doubt", "child", "fork", "all", "any"]
SETS = ("all", "any")

# The kinds of entries that the fold looks at: others are not even read for it.
SHIFTS = ("forked", "rewound")  # time stood still for what is open
FOLDED = ("wait.started", "wait.completed", "signal", *SHIFTS)


class Wait(Frozen, frozen=True, kw_only=True):
    """One open wait. ``doubt``: a person decides whether a step that may have taken effect is done again.

    ``all`` and ``any`` are sets: waits of their own, whose parts are waits beside them.
    """

    id: str
    key: str  # of the call that waits
    kind: WaitKind
    name: str = ""  # of the signal, or what the person is asked
    since: float
    until: float | None = None  # seconds since the epoch
    absolute: bool = False  # until: is a moment that the program named, not a length of time from since on
    show: Any = None
    form: list[Field] = msgspec.field(default_factory=list)  # what the person fills in
    child: str = ""  # the run that it started, and waits for
    run: str = ""  # a fork that its run made, and waits for
    of: str = ""  # id of the set that it is a part of
    index: int = 0  # its place in there
    order: list[int] = msgspec.field(default_factory=list)  # of a set: the parts that are over, as they came

    def later(self, seconds: float) -> Wait:
        """The same wait; time stood still for it for so long. A moment that was named stays that moment."""
        return (
            self if self.until is None or self.absolute else msgspec.structs.replace(self, until=self.until + seconds)
        )

    @property
    def awaited(self) -> str:
        """The run that it waits for, if it waits for one."""
        return self.child or self.run

    def to_info(self) -> dict[str, Any]:
        shown = ("id", "kind", "name", "since", "until", "show", "form", "child", "run", "of")
        return {name: msgspec.to_builtins(getattr(self, name)) for name in shown}


class Signal(Frozen, frozen=True, kw_only=True):
    """A signal that no wait has taken yet."""

    id: str
    name: str
    value: Any = None
    at: float


_SIGNAL_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def signal_key(signal_id: str) -> str:
    """The key of the entry of a signal that its sender gave an id. No call has such a key. InvalidValue."""
    if not _SIGNAL_ID.fullmatch(signal_id):
        raise InvalidValue(f"not the id of a signal: {signal_id[:60]!r}", hint="It is 1 to 128 of A-Z a-z 0-9 . _ : -")
    return f"signal:{signal_id}"


class Waits(Frozen, frozen=True, kw_only=True):
    """Open waits and kept signals, oldest first."""

    open: list[Wait] = msgspec.field(default_factory=list)
    signals: list[Signal] = msgspec.field(default_factory=list)

    def after(self, kind: str, payload: Any) -> Waits:
        """The waits after one more entry."""
        if kind not in FOLDED:
            return self
        if kind in SHIFTS:
            return Waits(open=[wait.later(payload.get("shift_s", 0.0)) for wait in self.open], signals=self.signals)
        if kind == "wait.started":
            new = msgspec.convert([payload["wait"], *payload.get("parts", [])], list[Wait])
            return Waits(open=[*self.open, *new], signals=self.signals)
        if kind == "wait.completed":
            taken = payload.get("signal")
            return Waits(
                open=self._without(payload["wait"], payload.get("of", ""), payload.get("index", 0)),
                signals=[signal for signal in self.signals if signal.id != taken],
            )
        if kind == "signal":
            return Waits(open=self.open, signals=[*self.signals, msgspec.convert(payload["signal"], Signal)])
        return self

    def _without(self, done: str, of: str, index: int) -> list[Wait]:
        """The open waits once one is over: the parts of a set end with it, and a set counts its parts."""
        left = [wait for wait in self.open if done not in (wait.id, wait.of)]
        if not of:
            return left
        return [msgspec.structs.replace(w, order=[*w.order, index]) if w.id == of else w for w in left]

    def of_call(self, key: str) -> Wait | None:
        """The open wait of a call; of a set the set."""
        return next((wait for wait in self.open if wait.key == key and not wait.of), None)

    def find(self, wait_id: str) -> Wait | None:
        return next((wait for wait in self.open if wait.id == wait_id), None)

    def taker(self, name: str) -> Wait | None:
        """The oldest wait for a signal of this name."""
        return next((wait for wait in self.open if wait.kind == "signal" and wait.name == name), None)

    def kept(self, name: str, taken: Container[str] = ()) -> Signal | None:
        """The oldest signal of this name that was kept, beside those whose ids are ``taken``."""
        return next((signal for signal in self.signals if signal.name == name and signal.id not in taken), None)

    @property
    def whole(self) -> list[Wait]:
        """Those that a call waits for: a set without its parts, which end with it."""
        return [wait for wait in self.open if not wait.of]

    @property
    def askable(self) -> list[Wait]:
        """Those a person answers."""
        return [wait for wait in self.open if wait.kind in ("approval", "doubt")]
