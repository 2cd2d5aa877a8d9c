"""All runs of one server: started, found again after a restart, signalled, approved, cancelled, and their calls.

Only one engine may drive the runs of a log (the log's file lock sees to that).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable
from typing import Any

import msgspec

from perdure.context.log import ContextLog, Head, NewEntry
from perdure.errors import Conflict, NotFound, StaleEpoch
from perdure.model import Answer, Call, CallsEndpoint, Entry, RunInfo, RunState, new_id
from perdure.runs.calls import Calls
from perdure.runs.driver import Driver, Settings
from perdure.runs.ports import Machines, ModelCalls
from perdure.runs.record import Record, StartRequest, from_head, to_value
from perdure.runs.run import Run
from perdure.runs.states import TERMINAL
from perdure.runs.timers import Timers
from perdure.runs.waits import Wait

log = logging.getLogger(__name__)


class Engine:
    """Made by ``open``; ``close`` leaves every machine as it is: the next engine finds them again."""

    def __init__(
        self,
        context: ContextLog,
        machines: Machines,
        models: ModelCalls,
        *,
        calls_url: str,
        secret: bytes,
        settings: Settings | None = None,
    ) -> None:
        """calls_url: where machines send their calls. secret: machines' tokens are made with it, so it outlives us."""
        self._context = context
        self._machines = machines
        self._models = models
        self._calls = Calls(models)
        self._calls_url = calls_url
        self._secret = secret
        self._settings = settings or Settings()
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers = Timers(self._deadline)

    # -- life

    async def open(self) -> None:
        """Take up every run that has not ended."""
        for head in await self._context.heads():
            if not from_head(head).released:
                await self._adopt(self._take_up(head))
        self._spawn(self._timers.run(), "timers")
        self._spawn(self._listen(), "node-events")
        for run in self._runs.values():
            self._drive(run)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take_up(self, head: Head) -> Run:
        run = self._runs[head.run_id] = Run(head, self._context, self._on_wait)
        return run

    async def _adopt(self, run: Run) -> None:
        """What a former server was doing with this run's machine when it ended."""
        run.look()
        if run.state is RunState.QUEUED:
            await self._queued(run)
        elif run.state in (RunState.STARTING, RunState.RESUMING, RunState.RECOVERING):
            # A machine of this epoch may have begun: what it did is like what a lost one did.
            epoch = run.record.epoch + 1
            lost = [*run.record.lost_epochs, run.record.epoch]
            why = {"cause": "server-lost", "detail": f"the server ended while it was {run.state}", "epoch": epoch}
            recoveries = run.record.recoveries + 1
            await run.write(to=RunState.RECOVERING, epoch=epoch, lost_epochs=lost, recoveries=recoveries, why=why)

    async def _queued(self, run: Run) -> None:
        """The first entry of a log: what was asked for."""

        async def act() -> None:
            if (await self._context.head(run.id)).seq == 0:
                asked = {"request": msgspec.to_builtins(run.record.request), "source": run.record.source}
                await run.write(NewEntry(kind="run.queued", payload=asked))

        await run.atomically(act)

    def _drive(self, run: Run) -> None:
        async def drive() -> None:
            await Driver(run, self._machines, self._models, self.endpoint, self._settings).drive()
            self._runs.pop(run.id, None)

        self._spawn(drive(), f"run-{run.id}")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and task.exception() is not None:
                log.error("%s ended: %r", name, task.exception(), exc_info=task.exception())

        task.add_done_callback(ended)

    async def _listen(self) -> None:
        async for event in self._machines.events():
            for run in list(self._runs.values()):
                if event.kind == "node.connected" or event.sandbox_id == run.record.sandbox_id:
                    run.look()

    def _on_wait(self, run_id: str, wait: Wait) -> None:
        if wait.until is not None:
            self._timers.add(wait.until, run_id, wait.id)

    async def _deadline(self, run_id: str, wait_id: str) -> None:
        run = self._runs.get(run_id)
        if run is not None:
            await run.timeout(wait_id)

    # -- what people and programs ask

    async def start(self, request: StartRequest) -> tuple[RunInfo, bool]:
        """Start a run; with a ``key`` that was used before: that run, and False."""
        request.check()
        source = await self._context.put_blob(request.source.encode()) if request.source else None
        kept = msgspec.structs.replace(request, source="")
        record = Record(state=RunState.QUEUED, request=kept, source=source)
        run_id = new_id()
        head = await self._context.create(run_id, to_value(record), key=request.key)
        if head.run_id == run_id:
            run = self._take_up(head)
            await self._queued(run)
            self._drive(run)
        return await self.info(head.run_id), head.run_id == run_id

    async def find(self, ref: str) -> str:
        """The id of the run that ``ref`` (an id, a unique prefix of one, or a name) means."""
        heads = await self._context.heads()
        if any(head.run_id == ref for head in heads):
            return ref
        named = [head.run_id for head in heads if from_head(head).request.name == ref]
        found = named or [head.run_id for head in heads if ref and head.run_id.startswith(ref)]
        if not found:
            raise NotFound(f"no such run: {ref}", hint="`perdure runs` lists them.")
        if len(found) > 1:
            raise Conflict(f"{ref} means {len(found)} runs", hint="Use more of the id: " + ", ".join(found[:5]))
        return found[0]

    async def info(self, run_id: str) -> RunInfo:
        head = await self._context.head(run_id)
        asked = await self._context.count(run_id, "model.started")
        replayed = await self._context.count(run_id, "model.replayed")
        return from_head(head).info(head, asked, replayed)

    async def runs(self, states: Iterable[str] = (), limit: int = 1000) -> list[RunInfo]:
        """Newest first."""
        wanted = set(states)
        heads = [head for head in await self._context.heads() if not wanted or head.value["state"] in wanted]
        return [await self.info(head.run_id) for head in heads[::-1][:limit]]

    async def states(self) -> dict[str, int]:
        """How many runs are in each state."""
        counts: dict[str, int] = {}
        for head in await self._context.heads():
            counts[head.value["state"]] = counts.get(head.value["state"], 0) + 1
        return counts

    async def ended(self, run_id: str, timeout_s: float) -> RunInfo:
        """The run once it has ended, or as it is after ``timeout_s``."""
        run = self._runs.get(run_id)
        if run is not None:
            await run.until(lambda: run.ended, timeout_s)
        return await self.info(run_id)

    async def follow(self, run_id: str, after: int, *, expand: bool = True) -> AsyncGenerator[Entry]:
        """Entries as they come, until the one that ends the run."""
        ends = {f"run.{state}" for state in TERMINAL}
        if (await self._context.head(run_id)).seq <= after and from_head(
            await self._context.head(run_id)
        ).state in TERMINAL:
            return
        async for entry in self._context.follow(run_id, after=after, expand=expand):
            yield entry
            if entry.kind in ends:
                return

    async def signal(self, run_id: str, name: str, value: Any) -> None:
        await (await self._going(run_id)).signal(name, value)

    async def cancel(self, run_id: str, reason: str = "") -> None:
        await (await self._going(run_id)).cancel(reason)

    async def approve(
        self, run_id: str, wait_id: str | None, *, approved: bool, comment: str = "", by: str = ""
    ) -> dict[str, Any]:
        """Answer an approval (or a step in doubt), exactly once; returns the wait. Conflict: it was answered already
        (details: by, at), or the run waits for none."""
        run = self._runs.get(run_id)
        if run is None:
            raise await self._no_approval(run_id, wait_id)

        async def act() -> dict[str, Any]:
            askable = run.record.waits.askable
            found = [wait for wait in askable if wait_id is None or wait.id.startswith(wait_id)]
            if run.ended or not found:
                raise await self._no_approval(run_id, wait_id)
            if len(found) > 1:
                hint = "Name one of: " + ", ".join(f"{wait.id} ({wait.name})" for wait in found)
                raise Conflict(f"run {run_id} waits for {len(found)} approvals", hint=hint)
            value = {"approved": approved, "comment": comment}
            await run.complete_wait(found[0], {"outcome": "completed", "value": value, "by": by, "at": time.time()})
            return found[0].to_info()

        return await run.atomically(act)

    async def _no_approval(self, run_id: str, wait_id: str | None) -> Conflict:
        """Why an approval cannot be taken."""
        state = from_head(await self._context.head(run_id)).state
        done, after = [], 0
        while page := await self._context.read(run_id, after=after, kind="wait.completed"):
            done += [e.payload for e in page if e.payload.get("kind") in ("approval", "doubt")]
            after = page[-1].seq
        answered = [d for d in done if wait_id is None or str(d["wait"]).startswith(wait_id)]
        if not answered:
            what = f"wait {wait_id} is not open" if wait_id else "it does not wait for an approval"
            hint = f"`perdure show {run_id}` says what it does."
            return Conflict(f"run {run_id} is {state}: {what}", hint=hint, state=state)
        last = answered[-1]
        at, by = last.get("at", 0.0), last.get("by") or "somebody"
        moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
        if last["outcome"] == "timed-out":
            message = f"the approval {last['wait']} of run {run_id} timed out at {moment}"
        elif last["outcome"] == "withdrawn":
            message = f"the program of run {run_id} stopped waiting for the approval {last['wait']} at {moment}"
        else:
            verdict = "approved" if last["value"]["approved"] else "refused"
            message = f"the approval {last['wait']} of run {run_id} was answered already: {verdict} by {by} at {moment}"
        hint = "The first answer counts."
        return Conflict(message, hint=hint, wait=last["wait"], by=last.get("by", ""), at=at, outcome=last["outcome"])

    async def _going(self, run_id: str) -> Run:
        run = self._runs.get(run_id)
        if run is None or run.ended:
            state = from_head(await self._context.head(run_id)).state
            raise Conflict(f"run {run_id} has ended: it is {state}", state=state)
        return run

    # -- what machines ask

    def endpoint(self, run_id: str, epoch: int) -> CallsEndpoint:
        """Where the machine of an epoch of a run sends its calls."""
        return CallsEndpoint(url=self._calls_url, run_id=run_id, epoch=epoch, token=self._token(run_id, epoch))

    def _token(self, run_id: str, epoch: int) -> str:
        return hmac.new(self._secret, f"{run_id}/{epoch}".encode(), hashlib.sha256).hexdigest()

    async def answer(self, call: Call, token: str) -> Answer:
        """See ``Calls.answer``. StaleEpoch too: a wrong token, a run that has ended."""
        if not hmac.compare_digest(token, self._token(call.run_id, call.epoch)):
            raise StaleEpoch(f"a call for run {call.run_id} has a wrong token", hint="This machine is to end.")
        run = self._runs.get(call.run_id)
        if run is None:
            raise StaleEpoch(f"run {call.run_id} has ended or never was", hint="This machine is to end.")
        return await self._calls.answer(run, call)

    async def output(self, run_id: str, tail_bytes: int) -> bytes:
        """The end of what the run's program wrote; after the run's end the last 16 KiB of it are kept."""
        record = from_head(await self._context.head(run_id))
        if record.sandbox_id and not record.released:
            try:
                return await self._machines.output(record.sandbox_id, tail_bytes)
            except NotFound:  # it is being removed after the run's end
                record = from_head(await self._context.head(run_id))
        return record.output.encode()[-tail_bytes:]
