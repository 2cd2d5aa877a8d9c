"""This server among others on one database: its lease, and the runs of lost servers that it takes over.

A lost server is one whose counter stood still at ``lost_s / heartbeat_s`` looks in a row. Looks are counted, and not
seconds: a server that was stopped itself, or whose database was, has not looked meanwhile, and accuses nobody.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from perdure.context.leases import Lease, Leases
from perdure.errors import LeaseLost, PerdureError
from perdure.model import new_id
from perdure.runs.clock import SYSTEM, Clock

log = logging.getLogger(__name__)


LEFT_LOOKS = 3  # so long runs of a lost server are left to another one at its node


def node_of(facts: Mapping[str, Any]) -> str:
    """The id of a server's node, by what it says of itself; "": it does not."""
    found = facts.get("node")
    return str(found) if isinstance(found, str) else ""


class Holder(Protocol):
    """The engine, as far as a tenure moves it. Errors are those of the log."""

    async def take(self, run_id: str, of: str, *, is_ours: bool) -> None:
        """Take up a run of the server ``of``; ``is_ours``: that was this home's, and its machine is at our node."""
        ...

    async def look(self, servers: frozenset[str]) -> None:
        """Something may have happened at other servers; these live."""
        ...

    async def let_go(self) -> None:
        """Stop everything that is under way for all runs, and forget them."""
        ...

    @property
    def held(self) -> int:
        """How many runs it has."""
        ...


@dataclass(frozen=True)
class Terms:
    """Seconds."""

    heartbeat_s: float = 1.0
    lost_s: float = 5.0  # a lease that did not move for so long is removed

    @property
    def looks(self) -> int:
        return max(2, math.ceil(self.lost_s / self.heartbeat_s))


class Tenure:
    """``facts``: what the others are told of this server. ``former``: the id that this home had before: whoever has
    the home's lock knows that no server lives under it. ``remember``: is told of each new id."""

    def __init__(
        self,
        leases: Leases,
        holder: Holder,
        facts: Mapping[str, Any],
        *,
        former: str = "",
        remember: Callable[[str], None] = lambda server: None,
        terms: Terms | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._leases = leases
        self._holder = holder
        self._facts = facts
        self._formers = {former} - {""}
        self._remember = remember
        self._terms = terms or Terms()
        self._clock = clock
        self._still: dict[str, tuple[int, int]] = {}  # server -> its counter, and how many looks it did not move for
        self._nodes: dict[str, str] = {}  # server -> the id of its node
        self._left: dict[str, int] = {}  # lost server -> at how many looks its runs were left to others at its node
        self._moved: dict[str, float] = {}  # when it was last seen to move, on our monotonic clock
        self._owed: dict[str, str] = {}  # runs that were taken and could not be taken up yet -> whose they were
        self._beaten = 0.0  # when the counter was last moved, on the same clock
        self.is_held = False

    async def begin(self) -> None:
        """A lease under a new id, and the runs that this home had before."""
        server, formers = new_id(), list(self._formers)
        lasts_s = self._terms.heartbeat_s * (self._terms.looks - 1)
        self._beaten = self._clock.monotonic()
        lease = await self._leases.begin(server, self._facts, lasts_s=lasts_s)
        self._formers.add(server)
        for former in formers:
            await self._leases.remove(former, None)
        orphans = await self._leases.orphans()
        for former in formers:
            for run_id in orphans.get(former, ()):
                await self._take(run_id, former)
        self._remember(server)
        self.is_held = True
        log.info("server %s, lease %d", server, lease.lease)

    async def servers(self) -> list[dict[str, Any]]:
        """All that have a lease, and how long ago their counters moved, as this server saw it."""
        now, found = self._clock.monotonic(), []
        for lease in await self._leases.leases():
            facts = {name: value for name, value in lease.facts.items() if name != "token"}
            age_s = 0.0 if lease.server == self._leases.server else now - self._moved.get(lease.server, now)
            named = {"server": lease.server, "lease": lease.lease, "runs": lease.runs}
            found.append({**named, **facts, "heartbeat_age_s": round(age_s, 2)})
        return found

    async def end(self) -> None:
        """Give up the lease: what has not ended is taken over by another server at once."""
        self.is_held = False
        await self._leases.end()

    async def run(self) -> None:
        """For ever: move the counter, look at the others', take over what was lost."""
        told = ""
        while True:
            next_beat = self._clock.monotonic() + self._terms.heartbeat_s
            try:
                await self._beat()
                told = ""
            except Exception as error:  # whatever it is: a server without a heartbeat loses everything
                if str(error) != told:  # once: the database may be away for long
                    told = str(error)
                    log.warning("no heartbeat: %s", told, exc_info=None if isinstance(error, PerdureError) else error)
            await self._clock.sleep_until(next_beat)

    async def _beat(self) -> None:
        self._beaten = self._clock.monotonic()
        if not self.is_held or not await self._leases.beat():
            await self._anew()
            return
        living = await self._watch(await self._leases.leases())
        for run_id, of in list(self._owed.items()):
            await self._take(run_id, of)
        await self._take_over()
        await self._holder.look(frozenset(living))

    async def _anew(self) -> None:
        """The others believed us lost: stopped, or away from the database. Nothing of ours was written since."""
        if self.is_held:
            log.warning("server %s has lost its lease: it begins anew", self._leases.server)
            self.is_held = False
        self._owed.clear()
        await self._holder.let_go()
        await self.begin()

    async def _watch(self, leases: list[Lease]) -> set[str]:
        """Remove what is lost; who lives."""
        living = {lease.server for lease in leases}
        seen, self._still = self._still, {}
        for lease in leases:
            if lease.server == self._leases.server:
                continue
            self._nodes[lease.server] = node_of(lease.facts)
            beat, looks = seen.get(lease.server, (lease.beat, 0))
            looks = looks + 1 if beat == lease.beat else 0
            self._still[lease.server] = lease.beat, looks
            if looks == 0:
                self._moved[lease.server] = self._clock.monotonic()
            if looks >= self._terms.looks and await self._leases.remove(lease.server, lease.beat):
                living.discard(lease.server)
                what = "server %s (%s) is lost: its counter stood still for %g s"
                log.warning(what, lease.server, lease.facts.get("url"), self._terms.lost_s)
        return living

    async def _take_over(self) -> None:
        """What nobody owns, up to our share, and all of servers at our node; in no order, as others take theirs now.
        What is left is anybody's with the next beat."""
        found = await self._leases.orphans()
        if not found:
            self._left.clear()
            return
        leases = await self._leases.leases()
        mine, others, node = list[tuple[str, str]](), list[tuple[str, str]](), node_of(self._facts)
        for of, runs in found.items():
            of_node = self._nodes.get(of, "")
            if of_node and of_node == node:
                mine += [(run_id, of) for run_id in runs]  # their machines are here: that is worth more than shares
            elif not self._is_for_another(of, of_node, leases):
                others += [(run_id, of) for run_id in runs]
        count = sum(len(runs) for runs in found.values())
        share = math.ceil((sum(lease.runs for lease in leases) + count) / max(1, len(leases)))
        random.shuffle(mine)
        random.shuffle(others)
        rest = max(1, share - self._holder.held - len(mine))
        for run_id, of in [*mine, *others[:rest]]:
            await self._take(run_id, of)

    def _is_for_another(self, of: str, node: str, leases: list[Lease]) -> bool:
        """Whether a server that lives at the node of a lost one is let go first: the run's snapshots are there."""
        if not node or all(node_of(lease.facts) != node for lease in leases):
            return False
        self._left[of] = self._left.get(of, 0) + 1
        return self._left[of] <= LEFT_LOOKS

    async def _take(self, run_id: str, of: str) -> None:
        now = self._clock.monotonic()
        if now - self._beaten >= self._terms.heartbeat_s:  # there may be many
            self._beaten = now
            if not await self._leases.beat():
                raise LeaseLost("this server has lost its lease while it took runs over")
        if await self._leases.take(run_id, of):
            self._owed[run_id] = of  # it is ours: should what follows fail, it is tried again
            await self._holder.take(run_id, of, is_ours=of in self._formers)
            del self._owed[run_id]
