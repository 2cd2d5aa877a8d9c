"""Which servers live on one database, and which of them each run belongs to. SQLite has one server, and none of this.

A lease is a row with a counter that its server moves, about once a second. No two clocks are ever compared: another
server counts how often it looked and the counter had not moved, and then removes the lease, if it still has not.

A run belongs to one server, which alone may write to it. Whoever writes looks, in the same transaction, whether its
lease is there, and holds it there until the end (``LeaseLost``). So a lease that is gone is the fence: a server that
was stopped for a minute, or could not reach the database, writes nothing any more. What belongs to a server without a
lease is for whoever takes it, by compare-and-set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from perdure.model import Frozen


class Lease(Frozen, frozen=True, kw_only=True):
    """One server that lives, or did a moment ago."""

    server: str  # its id: another one with each lease
    lease: int  # its number: never used again
    beat: int  # the counter
    facts: dict[str, Any]  # what the server says of itself: url, token, version …
    runs: int = 0  # that belong to it


class Owner(Frozen, frozen=True, kw_only=True):
    """Whose a run is."""

    server: str  # "": nobody's, it has ended
    lease: Lease | None  # None: that server is gone, the run is about to be taken over


class Leases(Protocol):
    """Errors are those of the log: ``Unavailable`` when the database is away."""

    @property
    def server(self) -> str:
        """This one's id; "": it has no lease."""
        ...

    @property
    def is_sure(self) -> bool:
        """Nobody can have removed the lease, as its last beat is so young. A server that was stopped in between does
        nothing on what it had written, or read, before: ``LeaseLost`` instead of the answer."""
        ...

    async def time(self) -> float:
        """The clock of the database, in seconds since 1970: one for all servers."""
        ...

    async def begin(self, server: str, facts: Mapping[str, Any], *, lasts_s: float) -> Lease:
        """A lease for this server under a new id. From now on it writes under that. lasts_s: so long after a beat it
        is sure to be there."""
        ...

    async def beat(self) -> bool:
        """Move the counter. False: the lease is gone."""
        ...

    async def end(self) -> None:
        """Give the lease up. What belongs to this server is anybody's from now on."""
        ...

    async def leases(self) -> list[Lease]:
        """Of all servers, the oldest first."""
        ...

    async def remove(self, server: str, beat: int | None) -> bool:
        """Remove the lease of a server that was lost, if its counter still is ``beat`` (None: whatever it is). Returns
        once nothing that it had begun to write can come any more."""
        ...

    async def orphans(self) -> dict[str, list[str]]:
        """Runs by the id of the server that they belonged to and that has no lease."""
        ...

    async def take(self, run_id: str, server: str) -> bool:
        """The run is this server's from now on, if it was that of ``server``, which has no lease, or is already."""
        ...

    async def owner(self, run_id: str) -> Owner:
        """``NotFound`` names the run."""
        ...
