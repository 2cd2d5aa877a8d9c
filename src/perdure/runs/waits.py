"""What runs are parked on. Pure: the open waits and the kept signals are a fold over the entries of a branch."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from perdure.model import Frozen

WaitKind = Literal["time", "signal", "approval", "doubt"]


class Wait(Frozen, frozen=True, kw_only=True):
    """One open wait. ``doubt``: a person decides whether a step that may have taken effect is done again."""

    id: str
    key: str  # of the call that waits
    kind: WaitKind
    name: str = ""  # of the signal, or what the person is asked
    since: float
    until: float | None = None  # seconds since the epoch
    show: Any = None

    def to_info(self) -> dict[str, Any]:
        shown = ("id", "kind", "name", "since", "until", "show")
        return {name: getattr(self, name) for name in shown}


class Signal(Frozen, frozen=True, kw_only=True):
    """A signal that no wait has taken yet."""

    id: str
    name: str
    value: Any = None
    at: float


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
