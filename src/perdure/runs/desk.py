"""What people ask of the runs of a server: which there are, how they are, and what to tell them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from perdure.context.log import ContextLog, Head, NewEntry
from perdure.context.rows import was_pruned
from perdure.errors import Conflict, LeaseLost, NotFound, PerdureError
from perdure.model import Budget, Entry, FileChange, OutputPiece, RunInfo, RunState, SnapshotInfo
from perdure.runs import checkpoints, comparing, ends, family, keys, output
from perdure.runs.bounds import check_value
from perdure.runs.forms import check_values
from perdure.runs.moments import said
from perdure.runs.ports import ModelCalls, OtherServers
from perdure.runs.record import from_head
from perdure.runs.roads import Roads
from perdure.runs.run import Outcome, Run
from perdure.runs.shelf import Shelf
from perdure.runs.states import TERMINAL

AT_ONCE = 500  # children that one query asks for
FEW = 20  # as many as a reference that means several is looked for


class Desk:
    """Questions are answered from the log, what is told goes to the live run."""

    def __init__(self, context: ContextLog, roads: Roads, models: ModelCalls, clean_up_s: float) -> None:
        """clean_up_s: for programs of runs that are cancelled."""
        self._context = context
        self._roads = roads
        self._models = models
        self._clean_up_s = clean_up_s
        self.elsewhere: OtherServers | None = None  # put there before ``open``; None: there are none
        self._shelf = Shelf(self._take_down)
        self._runs = self._shelf.live

    async def find(self, ref: str) -> str:
        """The id of the run that ``ref`` (an id, a unique prefix of one, or a name) means."""
        found = [head.run_id for head in await self._context.heads(prefix=ref, limit=FEW)] if ref else []
        if ref in found:
            return ref
        found = [head.run_id for head in await self._context.heads(name=ref, limit=FEW)] or found if ref else []
        if not found:
            raise NotFound(f"no such run: {ref}", hint="`perdure runs` lists them.")
        if len(found) > 1:
            how_many = len(found) if len(found) < FEW else f"{FEW} or more"
            raise Conflict(f"{ref} means {how_many} runs", hint="Use more of the id: " + ", ".join(found[:5]))
        return found[0]

    async def info(self, run_id: str) -> RunInfo:
        return await self._info(await self._context.head(run_id))

    async def _info(self, head: Head) -> RunInfo:
        record = from_head(head)
        return record.info(head, await self._children_of(head) if record.is_parent else [])

    async def _children_of(self, head: Head) -> list[str]:
        """Oldest first. One that nobody waited for any more before it was made is none."""
        run_id, found, after = head.run_id, list[str](), 0
        if head.pruned:
            return [child.run_id for child in await self._context.heads(parent=run_id)]
        while page := await self._context.read(run_id, after=after, kind="wait.started"):
            for entry in page:
                waits = [entry.payload["wait"], *entry.payload.get("parts", [])]
                found += [wait["child"] for wait in waits if wait.get("child")]
            after = page[-1].seq
        made = set[str]()
        for first in range(0, len(found), AT_ONCE):
            made |= {child.run_id for child in await self._context.heads(ids=found[first : first + AT_ONCE])}
        return [child for child in found if child in made]

    async def runs(
        self, states: Iterable[str] = (), limit: int = 1000, tags: Mapping[str, str] | None = None
    ) -> list[RunInfo]:
        """Newest first; with ``tags`` only those that have all of them."""
        heads = await self._context.heads(states=list(states) or None, tags=tags or {}, newest=True, limit=limit)
        return [await self._info(head) for head in heads]

    async def states(self) -> dict[str, int]:
        """How many runs are in each state."""
        return await self._context.states()

    async def ended(self, run_id: str, timeout_s: float) -> RunInfo:
        """The run once it has ended, or as it is after ``timeout_s``."""
        async with self._shelf.held(run_id) as run:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):  # who asks lives by the host's clock, not by the runs'
                    if run is not None:
                        with suppress(LeaseLost):
                            await run.until(lambda: run.ended)
                    if run is None or run.is_let_go:
                        await self._ended_elsewhere(run_id)
        return await self.info(run_id)

    async def _ended_elsewhere(self, run_id: str) -> None:
        async for _ in self.follow(run_id, (await self._context.head(run_id)).seq, expand=False):
            pass

    async def _take_down(self, run_id: str) -> None:
        raise NotImplementedError  # the engine drives runs

    async def follow(self, run_id: str, after: int, *, expand: bool = True) -> AsyncGenerator[Entry]:
        """Entries as they come, until the one that ends the run."""
        ends = {f"run.{state}" for state in TERMINAL}
        head = await self._context.head(run_id)
        if head.seq <= after and from_head(head).state in TERMINAL:
            return
        if head.pruned:
            raise was_pruned(run_id)
        async for entry in self._context.follow(run_id, after=after, expand=expand):
            yield entry
            if entry.kind in ends:
                return

    async def signal(self, run_id: str, name: str, value: Any, signal_id: str | None = None) -> tuple[Outcome, str]:
        """Deliver a signal. With an id that the run has already had: nothing, so that a sender may send it again. What
        became of it: see ``Run.signal``."""
        keys.check_name(name, "signal")
        check_value(value, f"the value of signal {name!r}")
        async with self._going(run_id) as run:
            return await run.signal(name, value, signal_id)

    async def deliver(self, ref: str, name: str, value: Any, signal_id: str) -> str:
        """Signal the run that ``ref`` means, in the name of another run; its id."""
        run_id = await self.find(ref)
        await self.signal(run_id, name, value, signal_id)
        return run_id

    async def checkpoint(self, run_id: str, *, keep: bool = False) -> SnapshotInfo:
        """A snapshot of the run at its position, now. keep: it is not given up for newer ones. Conflict."""
        async with self._going(run_id) as run:
            return await checkpoints.of_person(run, keep=keep)

    async def tag(self, run_id: str, tags: Mapping[str, str | None], **metadata: Any) -> RunInfo:
        """Set some tags (None: take one away), and ``metadata=`` a JSON value; in any state, also after the end."""
        if "metadata" in metadata:
            check_value(metadata["metadata"], "metadata")
        async with self._shelf.held(run_id) as live:
            run = live or Run(await self._context.head(run_id), self._context, lambda run_id, wait: None)

            async def act() -> None:
                request = run.record.request
                after = msgspec.structs.replace(request, tags=keys.tagged(request.tags, tags), **metadata)
                entry = NewEntry(kind="tagged", payload={"tags": dict(tags), **metadata})
                await run.write(entry, request=after)

            await run.atomically(act)
        return await self.info(run_id)

    async def set_budget(self, run_id: str, budget: Budget) -> RunInfo:
        """Change what of its budget ``budget`` names; from its next call on, in any state, also after the end."""
        budget.check()
        async with self._shelf.held(run_id) as live:
            run = live or Run(await self._context.head(run_id), self._context, lambda run_id, wait: None)

            async def act() -> None:
                after = budget.over(run.record.request.budget)
                entry = NewEntry(kind="budget", payload={"budget": msgspec.to_builtins(after)})
                await run.write(entry, request=msgspec.structs.replace(run.record.request, budget=after))

            await run.atomically(act)
        return await self.info(run_id)

    async def cancel(self, run_id: str, reason: str = "", *, clean_up_s: float | None = None) -> None:
        """End a run and its children. Its program has ``clean_up_s`` (None: the usual time, 0: none) to clean up."""
        error = {"code": "cancelled", "message": reason or "cancelled", "hint": "", "details": {}}
        async with self._going(run_id) as run:
            await self._end(run, RunState.CANCELLED, error, self._clean_up_s if clean_up_s is None else clean_up_s)

    async def _end(self, run: Run, to: RunState, error: dict[str, Any], clean_up_s: float) -> None:
        if await ends.end(run, to, error, clean_up_s):
            # Its next call tells it. The one that a model answers now is that one: nothing more is spent on it.
            await self._models.forget(run.id)

    async def approve(
        self,
        run_id: str,
        wait_id: str | None,
        *,
        approved: bool,
        comment: str = "",
        by: str = "",
        values: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Answer an approval (or a step in doubt), exactly once; returns the wait. Conflict: it was answered already
        (details: by, at), it has expired, or the run waits for none. values: by name of a field of its form;
        InvalidValue names the field."""
        check_value(values, "what was filled in")
        async with self._shelf.held(run_id) as run:
            if run is None:
                await self._check_here(run_id)
                raise await self._no_approval(run_id, wait_id)
            given = {"approved": approved, "comment": comment, "values": values or {}}
            return await self._answer(run, wait_id, given, by)

    async def _answer(self, run: Run, wait_id: str | None, given: dict[str, Any], by: str) -> dict[str, Any]:
        run_id = run.id

        async def act() -> dict[str, Any]:
            askable = run.record.waits.askable
            found = [wait for wait in askable if wait_id is None or wait.id.startswith(wait_id)]
            if run.ended or not found:
                raise await self._no_approval(run_id, wait_id)
            if len(found) > 1:
                hint = "Name one of: " + ", ".join(f"{wait.id} ({wait.name})" for wait in found)
                raise Conflict(f"run {run_id} waits for {len(found)} approvals", hint=hint)
            (wait,) = found
            if wait.until is not None and wait.until <= run.clock.time():  # its timer is on its way
                await run.complete_wait(wait, {"outcome": "timed-out", "at": run.clock.time()})
                raise await self._no_approval(run_id, wait.id)
            filled = check_values(wait.form, given["values"], complete=given["approved"])
            value = {**given, "values": filled}
            await run.complete_wait(wait, {"outcome": "completed", "value": value, "by": by, "at": run.clock.time()})
            return wait.to_info()

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
        moment, hint = said(at), "The first answer counts."
        if last["outcome"] == "timed-out":
            message = f"the approval {last['wait']} of run {run_id} expired: it timed out at {moment}"
            hint = f"The run went on without it; `perdure show {run_id}` says how."
        elif last["outcome"] == "withdrawn":
            message = f"the program of run {run_id} stopped waiting for the approval {last['wait']} at {moment}"
        else:
            verdict = "approved" if last["value"]["approved"] else "refused"
            message = f"the approval {last['wait']} of run {run_id} was answered already: {verdict} by {by} at {moment}"
        return Conflict(message, hint=hint, wait=last["wait"], by=last.get("by", ""), at=at, outcome=last["outcome"])

    async def _check_here(self, run_id: str) -> None:
        """LeaseLost: it has not ended, and is another server's, or about to be somebody's."""
        if from_head(await self._context.head(run_id)).state not in TERMINAL:
            raise LeaseLost(f"run {run_id} is at another server", hint="Ask again in a moment.")

    @asynccontextmanager
    async def _going(self, run_id: str) -> AsyncIterator[Run]:
        async with self._shelf.held(run_id) as run:
            if run is None:
                await self._check_here(run_id)
            if run is None or run.ended:
                state = from_head(await self._context.head(run_id)).state
                hint = "Nothing reaches it any more: start another run."
                raise Conflict(f"run {run_id} has ended: it is {state}", hint=hint, state=state)
            yield run

    # -- what was, and what else there is

    async def trees(self, run_id: str | None = None) -> list[dict[str, Any]]:
        """See ``family.trees``."""
        return await family.trees(self._context, run_id)

    async def diff(self, a: tuple[str, str], b: tuple[str, str], *, files: bool) -> dict[str, Any]:
        """Two runs (each an id, and a branch or nothing): where their logs part, and what differs in their files. Where
        they have none, ``files`` is None, and ``problem`` says why."""
        sides = [await comparing.side(self._context, *one) for one in (a, b)]
        shown = {name: msgspec.to_builtins(side) for name, side in zip("ab", sides, strict=True)}
        found = {**shown, "parted": await comparing.parting(self._context, *sides), "files": None, "problem": None}
        if files:
            try:
                found["files"] = await comparing.files(self._context, self.changes, a[0], b[0])
            except PerdureError as error:
                found["problem"] = error.to_json()
        return found

    async def changes(self, run_id: str) -> list[FileChange]:
        """What the files of the run's sandbox differ in from its image, by path."""
        record = from_head(await self._context.head(run_id))
        if self.elsewhere is not None and not record.released and not self._shelf.has(run_id):
            return await self.elsewhere.changes(run_id)
        machines = self._roads.of(record.request)
        return await machines.changes(comparing.sandbox_of(record, run_id, machines.node))

    async def file(self, run_id: str, path: str) -> bytes:
        """A file of the run's sandbox that it has changed since its image."""
        record = from_head(await self._context.head(run_id))
        machines = self._roads.of(record.request)
        return await machines.file(comparing.sandbox_of(record, run_id, machines.node), path)

    def printed(
        self, run_id: str, life: str = "", offset: int = 0, *, tail: int | None = None, live: bool = False
    ) -> AsyncGenerator[OutputPiece]:
        """See ``output.follow``."""
        return output.follow(self._context, self._roads, run_id, life, offset, tail=tail, live=live)

    async def output(self, run_id: str, tail_bytes: int) -> bytes:
        """The end of what the run's program wrote; after the run's end the last 16 KiB of it are kept."""
        record = from_head(await self._context.head(run_id))
        if record.sandbox_id and not record.released:
            try:
                return await self._roads.of(record.request).output(record.sandbox_id, tail_bytes)
            except NotFound:  # it is being removed after the run's end
                record = from_head(await self._context.head(run_id))
        return record.output.encode()[-tail_bytes:]
