"""What runs are parked on. Pure: the open waits and the kept signals are a fold over the entries of a branch."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from perdure.errors import InvalidValue
from perdure.model import Frozen
from perdure.runs.forms import Field

WaitKind = Literal["time", "signal", "approval", "doubt"]


class Wait(Frozen, frozen=True, kw_only=True):
    """One open wait. ``doubt``: a person decides whether a step that may have taken effect is done again."""

    id: str
    key: str  # of the call that waits
    kind: WaitKind
    name: str = ""  # of the signal, or what the person is asked
    since: float
    until: float | None = None  # seconds since the epoch
    absolute: bool = False  # until: is a moment that the program named, not a length of time from since on
    show: Any = None
    form: list[Field] = msgspec.field(default_factory=list)  # what the person fills in

    def to_info(self) -> dict[str, Any]:
        shown = ("id", "kind", "name", "since", "until", "show", "form")
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
        if kind == "wait.started":
            wait = msgspec.convert(payload["wait"], Wait)
            return Waits(open=[*self.open, wait], signals=self.signals)
        if kind == "wait.completed":
            done, taken = payload["wait"], payload.get("signal")
            return Waits(
                open=[wait for wait in self.open if wait.id != done],
                signals=[signal for signal in self.signals if signal.id != taken],
            )
        if kind == "signal":
            return Waits(open=self.open, signals=[*self.signals, msgspec.convert(payload["signal"], Signal)])
        return self

    def find(self, wait_id: str) -> Wait | None:
        return next((wait for wait in self.open if wait.id == wait_id), None)

    def taker(self, name: str) -> Wait | None:
        """The oldest wait for a signal of this name."""
        return next((wait for wait in self.open if wait.kind == "signal" and wait.name == name), None)

    def kept(self, name: str) -> Signal | None:
        """The oldest signal of this name that was kept."""
        return next((signal for signal in self.signals if signal.name == name), None)

    @property
    def askable(self) -> list[Wait]:
        """Those a person answers."""
        return [wait for wait in self.open if wait.kind in ("approval", "doubt")]
