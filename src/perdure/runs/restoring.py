"""How the machine of a run begins, and how it goes on from one of its snapshots, at the node of this server.

A snapshot lies at the node where it was taken, with the sandbox that it is of: there that sandbox goes on. It may also
be in the store that the nodes share (``runs.pushes``): from there any node takes it, and another sandbox of the run
goes on. One that is neither here nor there is passed over; its run has its log.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from perdure.errors import Conflict, InvalidValue, NotFound, PerdureError, SnapshotInvalid, Unavailable
from perdure.model import CallsEndpoint
from perdure.runs import pack, tokens, travel
from perdure.runs.ports import MachinePlan, Machines
from perdure.runs.record import Kept
from perdure.runs.run import Run

log = logging.getLogger(__name__)

PULL_TRIES = 5  # of what may be there again in a moment: a store, the way there, a node that is just starting
PULL_PAUSE_S = 1.0  # before the second one, doubled for each more


class Passed(Exception):
    """Nothing goes on from this snapshot here; what was tried changed nothing. Its text says why."""


class Restoring:
    """Of one run."""

    def __init__(self, run: Run, machines: Machines) -> None:
        self.run = run
        self._machines = machines

    def is_at_hand(self, one: Kept) -> bool:
        """The sandbox that it is of is the run's, and at our node (or nobody wrote down where it is)."""
        record, here = self.run.record, self._machines.node
        if here is None or record.node is None:
            return True
        return here.id == record.node.id and one.node in ("", here.id) and one.sandbox in ("", record.sandbox_id)

    async def restored(self, one: Kept, calls: CallsEndpoint) -> str:
        """The sandbox that goes on from it, with its calls at ``calls``. Passed; NotFound, SnapshotInvalid: it is gone,
        or damaged."""
        if self.is_at_hand(one):
            await self._machines.resume(self.run.record.sandbox_id, one.digest, calls)
            return self.run.record.sandbox_id
        return await self._fetched(one, calls)

    async def begun(self, calls: CallsEndpoint) -> tuple[str, Kept | None, list[dict[str, Any]]]:
        """A new sandbox, the snapshot that it goes on from (of a fork the nearest one that a sandbox of the runs above
        it still has), and what the log says of those that were passed over."""
        passed = list[dict[str, Any]]()
        for one in await travel.snapshots(self.run) if self.run.record.origin else ():
            try:
                return await self._forked(one, calls), one, passed
            except (NotFound, SnapshotInvalid) as error:
                passed.append(self.told(one, error.message))
            except Passed as error:
                passed.append(self.told(one, str(error)))
        return await self._machines.start(await self._plan(), calls), None, passed

    async def _plan(self) -> MachinePlan:
        record, request = self.run.record, self.run.record.request
        packed = await pack.read(self.run.context, record.pack)
        return MachinePlan(
            run_id=self.run.id,
            image=request.image,
            agent=request.agent,
            source=await self.run.context.get_blob(record.source) if record.source else b"",
            modules=await pack.contents(self.run.context, packed.modules),
            wheels=packed.wheels,
            python=packed.python,
            command=request.command,
            env=request.env if request.is_replay else {**tokens.keys(record), **request.env},
            memory_mib=request.memory_mib,
            vcpus=request.vcpus,
            disk_mib=request.disk_mib,
            fittings=request.fittings,
        )

    async def _forked(self, one: Kept, calls: CallsEndpoint) -> str:
        here = self._machines.node
        if here is not None and one.node not in ("", here.id):
            return await self._fetched(one, calls)
        return await self._new(one, calls)

    async def _fetched(self, one: Kept, calls: CallsEndpoint) -> str:
        if not one.store:
            here = self._machines.node
            if here is not None and one.node == here.id:
                raise Passed("it was of a sandbox that the run does not have any more")
            raise Passed(f"it is at {self._place(one)} only, and {self._here} goes on")
        try:
            await self._pulled(one)
        except PerdureError as error:
            raise Passed(f"it does not come from {one.store}: {error.message}") from error
        return await self._new(one, calls)

    async def _pulled(self, one: Kept) -> None:
        epoch = self.run.record.epoch
        for tried in range(1, PULL_TRIES + 1):
            try:
                await self._machines.pull(one.digest, one.store)
                return
            except Unavailable:
                pause_s = PULL_PAUSE_S * 2 ** (tried - 1)
                if tried == PULL_TRIES or await self.run.until(lambda: self.run.record.epoch != epoch, pause_s):
                    raise

    async def _new(self, one: Kept, calls: CallsEndpoint) -> str:
        try:
            return await self._machines.fork(self.run.id, one.digest, calls)
        except (Conflict, InvalidValue) as error:
            raise Passed(f"no other sandbox goes on from it: {error.message}") from error

    @property
    def _here(self) -> str:
        return "this server's" if self._machines.node is None else self._machines.node.said

    def _place(self, one: Kept) -> str:
        node = self.run.record.node
        return node.said if node is not None and one.node in ("", node.id) else f"node {one.node}"

    def told(self, one: Kept, why: str) -> dict[str, Any]:
        """What the log says of one that was passed over."""
        log.info("run %s: snapshot %s is passed over: %s", self.run.id, one.digest, why)
        return {"snapshot": one.digest, "seq": one.seq, "why": why}

    def whereabouts(
        self, passed: list[dict[str, Any]], one: Kept | None = None, moved: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """What the log says of where a machine goes on, if there is anything to say: another node than that of before,
        a store that the snapshot came from, and what was passed over."""
        here, before = self._machines.node, self.run.record.node
        told: dict[str, Any] = {"passed": passed} if passed else {}
        if here is not None and before is not None and here.id != before.id:
            told |= {"node": msgspec.to_builtins(here), "node_before": msgspec.to_builtins(before)}
        if one is not None and moved and one.store and "snapshots" in moved:
            told["store"] = one.store
        return told

    def moved(self, sandbox_id: str, of: Kept | None) -> dict[str, Any]:
        """What is other in the record once this sandbox is the run's; ``of``: the snapshot that it went on from. Those
        of the one before are nobody's any more, but for what is in the store."""
        record, here = self.run.record, self._machines.node
        if sandbox_id == record.sandbox_id and (here is None or record.node == here):
            return {}
        changes: dict[str, Any] = {"sandbox_id": sandbox_id, "node": here}
        if sandbox_id == record.sandbox_id and (record.node is None or here is None or record.node.id == here.id):
            return changes  # it is the same one
        left = [one for one in record.restorable if one.store]
        if of is not None:
            own = msgspec.structs.replace(of, node="" if here is None else here.id, sandbox=sandbox_id)
            others = [one for one in left if one.digest != of.digest]
            left = sorted([*others, own], key=lambda one: one.seq)
        return {**changes, "snapshots": left, "snapshot": record.snapshot if left else None}
