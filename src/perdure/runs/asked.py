"""One call of a run, and the rule that every call follows: looked up by its key, answered once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from perdure.context.log import NewEntry, request_hash, valid
from perdure.errors import Cancelled, InvalidValue, StaleEpoch, VersionMismatch
from perdure.model import Call, Entry, RunState
from perdure.runs.bounds import read_body
from perdure.runs.record import Overruled
from perdure.runs.retries import carried_shift
from perdure.runs.run import Run
from perdure.runs.travel import waits_at
from perdure.runs.waits import SHIFTS, Waits

HIDDEN = ("request",)  # in payloads, but not part of what was said
CALLS = "/perdure/v1/"
EXACT = (f"{CALLS}message",)
COUNTED = ("model.started", "model.replayed")

Result = TypeVar("Result")
Made = TypeVar("Made", bound=msgspec.Struct)
Body = dict[str, Any]


class Asked:
    """A call, the run that it is of, and what its entries are written with."""

    def __init__(self, run: Run, call: Call) -> None:
        self.run = run
        self.call = call
        self.is_new = False  # the log was seen to have nothing under its key

    @property
    def key(self) -> str:
        return self.call.key

    @property
    def request(self) -> str:
        """The hash of what is asked."""
        return request_hash(self.call)

    def body(self, *known: str) -> Body:
        """The JSON object that came with it; with ``known`` it has no other fields. InvalidValue."""
        body = read_body(self.call.body, f"the body of {self.call.path}")
        if not isinstance(body, dict):
            raise InvalidValue(f"the body of {self.call.path} is not a JSON object")
        unknown = sorted(set(body) - set(known)) if known else []
        if unknown:
            hint = f"It has: {', '.join(known)}."
            raise InvalidValue(f"the body of {self.call.path} has an unknown field {unknown[0]!r}", hint=hint)
        return body

    def convert(self, kind: type[Made]) -> Made:
        """The body as a value of ``kind``. InvalidValue names the field."""
        try:
            return msgspec.convert(self.body(*(field.name for field in msgspec.structs.fields(kind))), kind)
        except msgspec.ValidationError as error:
            hint = "See docs/formats/agent-calls.md."
            raise InvalidValue(f"the body of {self.call.path}: {error}", hint=hint) from error

    async def warm(self, act: Callable[[], Awaitable[Result]]) -> Result:
        """Run ``act`` under the run's lock while its machine is warm and of the call's epoch."""
        while True:
            await self.run.admit(self.call.epoch)

            async def checked() -> tuple[bool, Result | None]:
                if not self.run.answers or self.run.record.epoch != self.call.epoch:
                    return False, None
                return True, await act()

            done, result = await self.run.atomically(checked)
            if done:
                return result  # type: ignore[return-value]

    def is_over(self) -> bool:
        """The run has ended, or its machine is not the one that asked, or is captured and gone."""
        run = self.run
        return run.ended or run.record.epoch != self.call.epoch or run.state is RunState.SUSPENDED

    async def note(self, *entries: NewEntry) -> list[Entry]:
        """Append something new that the guest said. Under the run's lock."""
        self.run.progressed = True
        return await self.run.write(*entries, epoch=self.call.epoch)

    async def entries(self) -> list[Entry]:
        """What the branch has under this key, whatever was asked."""
        if self.run.keyed is not None and self.call.path.startswith(CALLS):
            known = self.run.keyed.of(self.key)
            if known is not None:
                return known
        return valid(await self.run.context.find(self.run.id, self.run.branch, self.key))

    async def known(self) -> list[Entry]:
        """What the branch has of this call; [] when it is new, also because the run was forked just now."""
        entries, asked = await self.entries(), self.request
        self.is_new = not entries
        if entries and not self.run.record.counts(self.key, entries[0].seq):
            await self.run.write(NewEntry(kind="overruled", key=self.key, payload={}), epoch=self.call.epoch)
            return []
        recorded = next(
            (e.payload["request"] for e in entries if isinstance(e.payload, dict) and "request" in e.payload), ""
        )
        if not entries or recorded in ("", asked) or self._goes_by_name():
            if last(entries, "ending.told"):  # of a run that was taken back, or is a fork, from after that
                hint = "Clean up and return, as it did then."
                raise Cancelled("the run was cancelled when this was first asked", hint=hint)
            if entries and self.run.replay is not None:
                self.run.replay.saw(self.key, entries, self.call.epoch)
            return entries
        await self._diverge(entries[0], str(recorded))
        return []

    def _goes_by_name(self) -> bool:
        """On the replay road a call's key has its name, and only what is said to others is to be the very same."""
        return self.run.record.request.is_replay and self.call.path.startswith(CALLS) and self.call.path not in EXACT

    async def _diverge(self, first: Entry, recorded: str) -> None:
        """The program asks something else than the log has here."""
        asked = {"method": self.call.method, "path": self.call.path, "body": _shown(self.call.body)}
        had = {name: value for name, value in first.payload.items() if name not in HIDDEN}
        why = {
            "key": self.call.key,
            "from_branch": self.run.branch,
            "at": first.seq,
            "recorded": {"kind": first.kind, "hash": recorded, "payload": had},
            "asked": {"hash": self.request, **asked},
        }
        policy = "fail" if self.run.record.request.is_replay else self.run.record.request.on_divergence
        entry = NewEntry(kind="diverged", key=None, payload={"policy": policy, **why})
        if policy == "fail":
            message = f"the program went another way than its log: call {self.call.key} differs from entry {first.seq}"
            hint = "The details have both sides; start the run with on_divergence=fork to go on live instead."
            code = VersionMismatch.code if self.run.record.request.is_replay else "diverged"
            error = {"code": code, "message": message, "hint": hint, "details": why}
            epoch = self.call.epoch + 1
            await self.run.write(entry, to=RunState.FAILED, epoch=epoch, why={"error": error}, error=error)
            raise StaleEpoch(message, hint=hint)
        if policy == "live":
            await self._overrule(first, entry)
            return
        waits, carried = await self._left(first.seq)
        steps = [key for key in self.run.record.steps if not self._is_after(key)]
        fork = (self.run.branch, first.seq - 1)
        entry = msgspec.structs.replace(entry, payload={**entry.payload, "carried": len(carried)})
        await self.run.write(entry, *carried, fork=fork, epoch=self.call.epoch, waits=waits, steps=steps)

    async def _overrule(self, first: Entry, entry: NewEntry) -> None:
        """Go on live on the same branch: what this lane had from here on does not count any more."""
        run, tip = self.run, await self.run.context.head(self.run.id)
        one = Overruled(lane=self.call.lane, ordinal=self.call.ordinal, at=first.seq, seq=tip.seq + 1)
        over = [wait for wait in run.record.waits.open if not wait.of and await self._is_covered(one, wait.key)]
        now = run.clock.time()
        withdrawn = [
            NewEntry(
                kind="wait.completed",
                key=wait.key,
                payload={"wait": wait.id, "kind": wait.kind, "outcome": "withdrawn", "at": now},
            )
            for wait in over
        ]
        left = {wait.id for wait in run.record.waits.open} - {wait.id for wait in over}
        left -= {wait.id for wait in run.record.waits.open if wait.of in {whole.id for whole in over}}
        to = RunState.RUNNING if run.state is RunState.WAITING and not left else None
        marker = NewEntry(kind="overruled", key=self.key, payload={})
        overruled = [*run.record.overruled, one]
        steps = [key for key in run.record.steps if not await self._is_covered(one, key)]
        entries = [*withdrawn, entry, marker]
        await run.write(*entries, to=to, epoch=self.call.epoch, steps=steps, overruled=overruled)

    async def _is_covered(self, one: Overruled, key: str) -> bool:
        entries = valid(await self.run.context.find(self.run.id, self.run.branch, key))
        return bool(entries) and one.covers(key, entries[0].seq)

    async def _left(self, seq: int) -> tuple[Waits, list[NewEntry]]:
        """What the new branch has of the old one: the waits at its fork, just before ``seq``, and from then on what is
        still true: signals, which came from outside, the calls of other lanes, which went no other way, and the time
        that a rewind or a fork gave to what is open. Of model calls only what was asked and answered: each request to a
        provider is counted once."""
        run, after = self.run, 0
        lanes: set[str] = set()  # begun before the fork
        while page := await run.context.read(run.id, branch=run.branch, after=after, expand=False):
            lanes.update(_lane(entry.key or "") for entry in page if entry.seq < seq)
            after = page[-1].seq
            if after >= seq:
                break
        carried: list[NewEntry] = []
        after = seq - 1
        while page := await run.context.read(run.id, branch=run.branch, after=after):
            for entry in page:
                if entry.kind in SHIFTS:
                    carried.append(carried_shift(entry))
                elif entry.kind == "signal" or (entry.key and self._is_carried(entry.key, lanes, entry.kind)):
                    carried.append(NewEntry(kind=entry.kind, payload=entry.payload, key=entry.key, is_copy=True))
            after = page[-1].seq
        return await waits_at(run.context, run.id, run.branch, seq - 1), carried

    def _is_carried(self, key: str, begun: set[str], kind: str) -> bool:
        # A lane that this one made after the fork is another one now, even if it has the same name.
        is_new = _lane(key).startswith(self.call.lane + ".") and _lane(key) not in begun
        return not is_new and not self._is_after(key) and kind not in COUNTED

    def _is_after(self, key: str) -> bool:
        """This call of the lane that goes another way, or a later one."""
        return _lane(key) == self.call.lane and int(key.rpartition("/")[2]) >= self.call.ordinal


def _lane(key: str) -> str:
    return key.rpartition("/")[0]


def last(entries: list[Entry], kind: str) -> Entry | None:
    return next((entry for entry in reversed(entries) if entry.kind == kind), None)


def _shown(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body) if body else None
    except msgspec.DecodeError:
        return body[:1000].decode("utf-8", "replace")
