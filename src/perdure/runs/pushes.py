"""The newest snapshot of a run, brought to the store that all nodes share: so that the run goes on from there when its
node is lost. In the background; the run goes on, or sleeps, meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import msgspec

from perdure.errors import NotFound, PerdureError
from perdure.runs.ports import Machines
from perdure.runs.record import Kept
from perdure.runs.run import Run

log = logging.getLogger(__name__)

TRIES = 5
PAUSE_S = 1.0  # before the second one, doubled for each more
LATER_S = 300.0  # after the last one; meanwhile the run may be on the shelf


class Pushes:
    """Of one run. ``store``: a URL, as the node knows them; "": there is none."""

    def __init__(self, run: Run, machines: Machines, store: str) -> None:
        self.run = run
        self._machines = machines
        self._store = store
        self._pushing: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()

    def begin(self) -> None:
        """Bring what is not there yet."""
        self._wanted.set()
        if self._owed() is not None and (self._pushing is None or self._pushing.done()):
            self._pushing = asyncio.create_task(self._work(), name=f"push-{self.run.id}")

    def close(self) -> None:
        """The run has ended."""
        if self._pushing is not None:
            self._pushing.cancel()

    def _owed(self) -> Kept | None:
        """The newest, unless it is there: nobody goes on from an older one."""
        return self.run.record.unshared(self._store, self._machines.node)

    async def _work(self) -> None:
        while (one := self._owed()) is not None and not self.run.is_let_go:
            self._wanted.clear()
            with self.run.held():  # it stays in memory for so long
                try:
                    is_done = await self._push(one)
                except NotFound:
                    if self._owed() == one:
                        return
                    continue  # it was given up meanwhile, for a newer one
            if not is_done:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LATER_S):
                        await self._wanted.wait()

    async def _push(self, one: Kept) -> bool:
        """False: the store is away. NotFound: that snapshot is."""
        for tried in range(1, TRIES + 1):
            try:
                await self._machines.push(one.digest, self._store)
                await self._note(one)
                return True
            except NotFound:
                raise
            except (PerdureError, OSError) as error:
                log.warning("run %s: snapshot %s is not in %s: %s", self.run.id, one.digest, self._store, error)
            if self._owed() != one:
                return True
            if tried < TRIES:
                await asyncio.sleep(PAUSE_S * 2 ** (tried - 1))
        return False

    async def _note(self, one: Kept) -> None:
        async def act() -> None:
            kept = list(self.run.record.restorable)
            at = next((at for at, other in enumerate(kept) if other.digest == one.digest), None)
            if at is not None and not self.run.ended:
                kept[at] = msgspec.structs.replace(kept[at], store=self._store)
                await self.run.write(snapshots=kept)

        await self.run.atomically(act)
