"""What checks ask of a life: who died when, and what nobody in it could take back."""

from __future__ import annotations

from typing import Protocol

from perdure.testing.crash.listener import Listener
from perdure.testing.crash.people import People
from perdure.testing.crash.provider import CountingProvider
from perdure.testing.crash.serving import Death


class Ledger(Protocol):
    def done(self) -> list[tuple[float, str, str]]:
        """Moment, run and step of each effect."""
        ...


class Lived(Protocol):
    @property
    def people(self) -> People: ...

    @property
    def provider(self) -> CountingProvider: ...

    @property
    def listener(self) -> Listener: ...

    @property
    def outside(self) -> Ledger: ...

    @property
    def deaths(self) -> list[Death]: ...

    @property
    def answered(self) -> list[tuple[str, str, str]]:
        """What guests were told: run, key and path."""
        ...
