"""One live run: its record, its transitions, and the calls that are in progress.

Everything that changes a run goes through ``Run.write`` under the run's lock: entries, transition and summary in one
transaction. Nothing here touches a machine (``runs.driver`` does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import msgspec

from perdure.context.log import Beside, ContextLog, Head, NewEntry, NewHead
from perdure.errors import Conflict, LeaseLost, LogConflict, StaleEpoch, Unavailable
from perdure.model import Entry, RunState, new_id
from perdure.runs import places
from perdure.runs.activity import Activity
from perdure.runs.clock import SYSTEM, Clock
from perdure.runs.completions import completion, taking
from perdure.runs.doubt import Doubt
from perdure.runs.keyed import Keyed
from perdure.runs.limits import clocked
from perdure.runs.record import Record, from_head, to_value
from perdure.runs.replays import Replay
from perdure.runs.states import TERMINAL, check
from perdure.runs.waits import Signal, Wait, Waits, signal_key
from perdure.runs.wishes import Wish

Result = TypeVar("Result")
Outcome = Literal["taken", "kept", "duplicate"]  # of a signal

WARM = frozenset((RunState.RUNNING, RunState.WAITING))
GONE = frozenset((RunState.SUSPENDED, RunState.RECOVERING))  # whoever asks next is another machine


class Run:
    """One run that has not ended, or whose machine is not removed yet."""

    def __init__(
        self,
        head: Head,
        context: ContextLog,
        on_wait: Callable[[str, Wait], None],
        on_change: Callable[[Run], None] = lambda run: None,
        clock: Clock = SYSTEM,
    ) -> None:
        """on_wait: told of every open wait (run id, wait), for its deadline. on_change: told after every write."""
        self.id = head.run_id
        self.record: Record = from_head(head)
        self.created = head.created
        self.branch = head.branch
        self.context = context
        self.clock = clock
        self.look_wanted = False  # something may have happened to the sandbox: the driver is to inspect it
        self.replay: Replay | None = None  # since a loss, or of a fork
        self.users = 0  # who have it in hand
        self.driven = False  # a driver moves it along
        self.is_let_go = False  # this server does not own it any more: nothing here is written or answered
        self.progressed = False  # the guest wrote something new in this epoch
        self.limited_until: float | None = None  # the earliest deadline of its limits that a timer is set for
        self.quiet_since = self.clock.monotonic()  # when a call last came, or was answered
        self.keyed: Keyed | None = None  # the calls that its log has, while a worker of the replay road lives
        self._version = head.version
        self._on_wait = on_wait
        self._on_change = on_change
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self.doubt = Doubt(self.id, self.held, self._settle)
        self.activity = Activity(self.touch, clock)
        self.activity.moved(self.record.state)
        self.capturing = False  # by a checkpoint: nothing is answered meanwhile
        self.wishes: list[Wish] = []  # for a checkpoint
        self._asking: dict[str, int] = {}  # wait id -> calls that wait for it now
        self._owed: set[str] = set()  # completed waits that the guest has not been told of
        for wait in self.record.waits.open:
            on_wait(self.id, wait)

    # -- what others see

    @property
    def state(self) -> RunState:
        return self.record.state

    @property
    def answers(self) -> bool:
        """The machine is warm, and not being captured."""
        return self.record.state in WARM and not self.capturing

    @property
    def ended(self) -> bool:
        return self.record.state in TERMINAL

    def notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def until(self, true: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until ``true()``, looked at after every change; False when the time is over. LeaseLost."""

        # A timeout, because wait_for of Python 3.11 loses a cancellation that comes together with the change.
        moment = None if timeout_s is None else self.clock.monotonic() + timeout_s
        try:
            async with self.clock.timeout_at(moment):
                while not true():
                    self._check_held()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def look(self) -> None:
        """Something may have happened to the sandbox."""
        self.look_wanted = True
        self.notify()

    def let_go(self) -> None:
        """This server does not own it any more: whoever waits for something here hears of it."""
        self.is_let_go = True
        self.notify()

    def _check_held(self) -> None:
        if self.is_let_go:
            hint = "Ask again: the server that has it answers, or is asked."
            raise LeaseLost(f"run {self.id} was taken over by another server", hint=hint)

    # -- writing

    async def atomically(self, act: Callable[[], Awaitable[Result]]) -> Result:
        """Run ``act`` under the run's lock, to its end even if the caller goes away meanwhile. Once more, where the log
        knows more than we do: a write whose answer was lost came through all the same. Where nobody knows whether it
        did, as the database is away, the log is read as soon as that answers."""

        async def locked() -> Result:
            async with self._lock:
                try:
                    return await act()
                except LogConflict:
                    if not await self._reread():
                        raise
                    return await act()
                except Unavailable:
                    self.doubt.arise()
                    raise

        task = asyncio.ensure_future(locked())
        hand = self.held()
        hand.__enter__()
        task.add_done_callback(lambda _: hand.__exit__(None, None, None))
        return await asyncio.shield(task)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Somebody has this run in hand: it is not put on the shelf meanwhile."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            if not self.users:
                self.notify()

    async def _settle(self) -> bool:
        leases = self.context.leases
        if not self.is_let_go and leases is not None and not leases.is_sure:
            return False
        async with self._lock:
            if not self.is_let_go:
                await self._reread()
        return True

    async def _reread(self) -> bool:
        """Take over what the log has; False: that is what is known here. Under the lock."""
        head = await self.context.head(self.id)
        if head.version == self._version:
            return False
        older, self.record = self.record, from_head(head)
        self.branch, self._version, self.keyed = head.branch, head.version, None
        if self.record.state is not older.state:
            self.activity.moved(self.record.state)
        for wait in self.record.waits.open:
            if older.waits.find(wait.id) is None:
                self._on_wait(self.id, wait)
        self._on_change(self)
        self.notify()
        return True

    async def write(
        self,
        *new: NewEntry,
        to: RunState | None = None,
        epoch: int | None = None,
        why: dict[str, Any] | None = None,
        fork: tuple[int, int] | None = None,
        waits: Waits | None = None,
        steps: list[str] | None = None,
        rewinds: bool = False,
        expected_seq: int | None = None,
        beside: Sequence[Beside] = (),
        **changes: Any,
    ) -> list[Entry]:
        """Append entries, take the arrow to ``to`` and replace fields of the record: one transaction. Under the lock.

        epoch: None is the host's own act. why: the payload of the transition's entry. fork: (parent branch, seq).
        waits, steps: those that the new branch begins with at a fork. expected_seq: of the branch, or LogConflict.
        beside: what is kept and changes with it.
        """
        self._check_held()
        waits = self.record.waits if waits is None else waits
        entries = list(new)
        steps = list(self.record.steps if steps is None else steps)
        for entry in entries:
            waits = waits.after(entry.kind, entry.payload)
            if entry.kind == "step.intent" and entry.key not in steps:
                steps.append(str(entry.key))
            elif entry.kind == "step.result" and entry.key in steps:
                steps.remove(entry.key)
        if to is RunState.RECOVERING:
            steps = []  # the next machine was captured, or starts, with none of them begun
            changes.setdefault("unheard", [])
        if epoch is not None and epoch > self.record.epoch:
            changes["epoch"] = epoch
            self.progressed = False
        if to is not None:
            check(self.id, self.state, to, rewinds=rewinds)
            if self.context.leases is not None:
                beside = [*beside, *places.moved(self.id, self.record.request, self.state, to)]
            changes = {**clocked(self.record, to, self.clock.time()), "state": to, **changes}
            entries.append(NewEntry(kind=f"run.{to}", payload=why or {}))
        lead = self._replayed(entries, to, epoch) if fork is None else []
        if fork is not None:
            changes.setdefault("overruled", [one for one in self.record.overruled if one.seq <= fork[1]])
        if not self.record.is_parent and any(wait.child for wait in waits.open):
            changes["is_parent"] = True
        record = msgspec.structs.replace(self.record, waits=waits, steps=steps, **changes)
        head = NewHead(expected_version=self._version, value=to_value(record)) if record != self.record else None
        keyed, self.keyed = self.keyed, None  # a write that is not acknowledged may have been done all the same
        if fork is None:
            written = await self.context.append(
                self.id, [*lead, *entries], epoch=epoch, expected_seq=expected_seq, head=head, beside=beside
            )
            if keyed is not None and to not in GONE:
                keyed.add(written)
                self.keyed = keyed
        else:
            written = await self.context.fork(
                self.id, entries, parent=fork[0], fork_seq=fork[1], epoch=epoch, head=head, beside=beside
            )
        older, self.record = self.record, record
        if to is not None:
            self.activity.moved(to)
        self._version += head is not None
        if written:
            self.branch = written[-1].branch
        if fork is not None or to is RunState.RECOVERING:
            self._owed.clear()  # it may never ask for them again; what it asks, it asks at once
        # What was open at the end of a run has no deadline any more.
        is_known = waits is not older.waits and older.state not in TERMINAL
        known = {wait.id: wait.until for wait in older.waits.open} if is_known else {}
        for wait in waits.open if waits is not older.waits else ():
            if wait.id not in known or known[wait.id] != wait.until:
                self._on_wait(self.id, wait)
        if lead and self.replay is not None:
            self.replay.told()
        if to is RunState.RECOVERING or (to is RunState.STARTING and record.origin and self.replay is None):
            self.replay = Replay()
        elif to is RunState.SUSPENDED:
            self.replay = None  # what it goes on from then is no loss
        self._on_change(self)
        self.notify()
        return written[len(lead) :]

    def _replayed(self, entries: list[NewEntry], to: RunState | None, epoch: int | None) -> list[NewEntry]:
        """What was answered from the log since a loss, once something new is written: nothing is written for it."""
        if self.replay is None or to is RunState.RECOVERING or (epoch is None and to is None):
            return []
        is_new = to is not None or not entries or any(entry.kind != "model.replayed" for entry in entries)
        return self.replay.entries() if is_new else []

    async def begin(self, beside: Sequence[Beside] = ()) -> None:
        """Leave the queue; nothing where it does not wait any more."""

        async def act() -> None:
            if self.state is RunState.QUEUED:
                epoch = self.record.epoch + 1
                await self.write(to=RunState.STARTING, epoch=epoch, why={"epoch": epoch}, beside=beside)

        await self.atomically(act)

    async def complete_wait(self, wait: Wait, outcome: dict[str, Any], *before: NewEntry) -> None:
        """Complete an open wait, exactly once. Under the lock; the caller has seen that it is open.

        outcome: the payload of its entry: {"outcome": "completed" | "timed-out", "value", "by", "at", "signal"}.
        """
        over, entries = completion(self.record.waits, wait, outcome)
        if over is None:  # a part of a set that is not over: nobody is woken for it
            await self.write(*before, *entries)
            return
        others = any(over.id not in (other.id, other.of) for other in self.record.waits.open)
        if self.state is RunState.WAITING and not others:
            await self.write(*before, *entries, to=RunState.RUNNING, why={"wait": over.id})
        else:
            asleep = self.state in (RunState.SUSPENDING, RunState.SUSPENDED)
            await self.write(*before, *entries, wake=self.record.wake or asleep)
        self._owed.add(over.id)

    async def signal(self, name: str, value: Any, signal_id: str | None = None) -> tuple[Outcome, str]:
        """Deliver a signal to the oldest wait for it, or keep it. One whose id the branch has is taken already. What
        became of it (``model.Signalled``), and the wait that took it."""
        key = None if signal_id is None else signal_key(signal_id)
        tried: tuple[Outcome, str] | None = None

        async def act() -> tuple[Outcome, str]:
            nonlocal tried
            self.check_going()
            if key is not None and await self.context.find(self.id, self.branch, key):
                return tried or ("duplicate", "")  # tried: its answer was lost, and it came through all the same
            signal = Signal(id=signal_id or new_id(), name=name, value=value, at=self.clock.time())
            entry = NewEntry(kind="signal", key=key, payload={"signal": msgspec.to_builtins(signal)})
            wait = self.record.waits.taker(name)
            became: tuple[Outcome, str] = ("kept", "") if wait is None else ("taken", wait.id)
            tried = became
            await (self.write(entry) if wait is None else self.complete_wait(wait, taking(signal), entry))
            return became

        return await self.atomically(act)

    async def timeout(self, wait_id: str, passed: float = 0.0) -> None:
        """The deadline of a wait has ``passed``, whatever the clock says; nothing happens when that is not open."""

        async def act() -> None:
            wait = self.record.waits.find(wait_id)
            if wait is None or self.ended:
                return
            if wait.until is not None and wait.until > max(self.clock.time(), passed):
                self._on_wait(self.id, wait)  # the run was rewound: the wait has longer than it had
            else:
                outcome = "completed" if wait.kind == "time" else "timed-out"
                await self.complete_wait(wait, {"outcome": outcome, "at": self.clock.time()})

        await self.atomically(act)

    def check_going(self) -> None:
        if self.ended:
            hint = "Nothing reaches it any more: start another run."
            raise Conflict(f"run {self.id} has ended: it is {self.state}", hint=hint, state=self.state)

    # -- calls in progress

    async def admit(self, epoch: int) -> None:
        """Returns once a call of this epoch may be handled. StaleEpoch: its machine is to end. Unavailable: ask again.

        While the machine is being captured nothing is answered, so that the snapshot is of exactly one position.
        """
        while True:
            self._check_held()
            if self.ended or epoch != self.record.epoch:
                hint = "This machine is to end."
                raise StaleEpoch(f"run {self.id} is {self.state} in epoch {self.record.epoch}, not {epoch}", hint=hint)
            if self.answers:
                return
            if self.state in (RunState.SUSPENDED, RunState.RECOVERING):
                raise Unavailable(f"run {self.id} is {self.state}: ask again")
            await self._changed.wait()

    @contextmanager
    def asking(self, wait_id: str) -> Iterator[None]:
        """A call waits for this wait now."""
        self._asking[wait_id] = self._asking.get(wait_id, 0) + 1
        self.touch()
        try:
            yield
        finally:
            self._asking[wait_id] -= 1
            if not self._asking[wait_id]:
                del self._asking[wait_id]
            self.touch()

    def owe(self, wait_ids: Iterable[str]) -> None:
        """These waits are completed, and the guest has not been told."""
        self._owed.update(wait_ids)

    def told(self, *wait_ids: str) -> None:
        """The guest has the answers of completed waits."""
        self._owed.difference_update(wait_ids)
        self.touch()

    def touch(self) -> None:
        """A call came, or was answered: the program goes on."""
        self.quiet_since = self.clock.monotonic()
        self.notify()

    def idle(self) -> bool:
        """Only waits are open, and models that think; the program asks for each wait, and it has heard of every other.

        A step that was begun is work: a machine captured in it would have its effect again without asking.
        """
        waits, busy = self.record.waits.open, self.activity.speaking or self.record.steps or self.capturing
        if self.record.ending is not None:
            return False  # what it waits for now is soon over, one way or the other
        is_parked = bool(waits or self.activity.thinking)
        asked = all((wait.of or wait.id) in self._asking for wait in waits)
        return is_parked and not busy and not self._owed and asked
