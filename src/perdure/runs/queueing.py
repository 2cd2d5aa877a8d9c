"""The queues of a server: which there are (kept in the log's database), who waits in them, and whose turn it is.

Who waits is not kept: it is every run in the state ``queued`` that names a queue. So a server that starts again finds
the same lines, and a run whose turn had come and that had not begun waits for it once more. Whose turn it is among
the runs of several servers is for ``runs.places``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from perdure.context.log import ContextLog
from perdure.errors import Conflict, InvalidValue, NotFound
from perdure.model import RunState
from perdure.runs import ends
from perdure.runs.clock import Clock
from perdure.runs.places import Places
from perdure.runs.queues import Active, Place, Queue, Waiting, order, plan
from perdure.runs.record import StartRequest, from_head
from perdure.runs.run import Run

KIND = "queue"
LOOK_S = 60.0
SHOWN_MAX = 100  # ids of those that wait
PAGE = 1000


class Line:
    """One queue and the runs of it."""

    def __init__(self, queue: Queue | None) -> None:
        """None: it is not there (any more), and nothing of it begins."""
        self.queue = queue
        self.waiting = Waiting()
        self.active = Active()
        self.expected = 0  # runs that are being made
        self.begun: list[float] = []  # oldest first, of the last period
        self.elsewhere: list[Place] = []  # that wait at other servers, when somebody last wanted to know
        self.turning = asyncio.Lock()
        self.turn_wanted = False

    @property
    def is_idle(self) -> bool:
        """Nothing is known of it that is not in the log."""
        runs = len(self.waiting) + len(self.active) + self.expected
        return self.queue is None and not runs and not self.turning.locked()


class Queues:
    """``wake(moment, name)``: have ``turn`` called at that moment."""

    def __init__(self, context: ContextLog, clock: Clock, wake: Callable[[float, str], None]) -> None:
        self._context = context
        self._clock = clock
        self._wake = wake
        leases = context.leases
        self._places = None if leases is None else Places(context, leases, clock)
        self._lines: dict[str, Line] = {}
        self._waits: dict[str, Place] = {}  # of runs that wait
        self._runs: dict[str, Run] = {}  # the same
        self._number = 0
        self._is_open = False

    async def open(self) -> None:
        """All runs were taken up."""
        await self._read()
        rated = {name: line for name, line in self._lines.items() if line.queue and line.queue.rate}
        if rated and self._places is None:
            await self._find_begun(rated)
        self._is_open = True
        await self.look()

    async def look(self) -> None:
        """Read the queues, now and again: another server on the same database may have changed them."""
        await self._read()
        for name in list(self._lines):
            self.turn(name)
        self._wake(self._clock.time() + LOOK_S, "")

    def look_elsewhere(self) -> None:
        """Something may have ended at another server."""
        for name, line in self._lines.items():
            if line.waiting:
                self.turn(name)

    async def due(self, name: str) -> None:
        """The moment of a wake has come."""
        if not name:
            await self.look()
        elif self._places is None:
            self.turn(name)
        else:
            await self._turn_among(self._places, name)

    async def _read(self, name: str | None = None) -> None:
        """All of them, or one."""
        found = {kept.name: msgspec.convert(kept.value, Queue) for kept in await self._context.kept(KIND, name)}
        for one, queue in found.items():
            self._line(one).queue = queue
        for one in [name] if name else list(self._lines):
            if one in self._lines and one not in found:
                self._lines[one].queue = None
                if self._lines[one].is_idle:
                    del self._lines[one]

    async def _find_begun(self, lines: dict[str, Line]) -> None:
        """When the runs of these queues began lately, also those that have ended since."""
        now, beyond = self._clock.time(), None
        while page := await self._context.heads(limit=PAGE, beyond=beyond):
            for head in page:
                record = from_head(head)
                line = lines.get(record.request.queue or "")
                if line and line.queue and record.dequeued > now - line.queue.period_s:
                    line.begun.append(record.dequeued)
            beyond = page[-1].run_id
        for line in lines.values():
            line.begun.sort()

    def _line(self, name: str) -> Line:
        if name not in self._lines:
            self._lines[name] = Line(None)
        return self._lines[name]

    # -- runs

    async def check(self, request: StartRequest) -> None:
        """NotFound: no such queue. InvalidValue: it names none, and has a place in it."""
        if request.queue is not None:
            line = self._lines.get(request.queue)
            if line is None or line.queue is None or self._places is not None:
                await self._read(request.queue)
            self._get(request.queue)
        elif request.queue_key is not None or request.priority:
            field = "queue_key" if request.queue_key is not None else "priority"
            raise InvalidValue(f"{field} is of a queue, and there is none", hint='Give "queue", too.')

    @contextmanager
    def expected(self, request: StartRequest) -> Iterator[None]:
        """A run that was checked is being made: its queue stays meanwhile. NotFound: it is gone since."""
        if request.queue is None:
            yield
            return
        self._get(request.queue)
        line = self._lines[request.queue]
        line.expected += 1
        try:
            yield
        finally:
            line.expected -= 1

    def asleep(self, run_id: str, request: StartRequest) -> None:
        """A run that sleeps, and is not in memory, is active as any."""
        if request.queue is not None:
            self._line(request.queue).active.put(run_id, request.queue_key)

    def let_go(self) -> None:
        """The runs are another server's."""
        self._waits.clear()
        self._runs.clear()
        for line in self._lines.values():
            line.waiting.clear()
            line.active.clear()

    def changed(self, run: Run) -> None:
        """Something was written to a run."""
        name = run.record.request.queue
        if name is None:
            return
        line = self._line(name)
        if run.state is RunState.QUEUED and run.id not in line.active:
            self._enter(line, run)
        elif run.ended:
            was_there = run.id in self._waits or run.id in line.active
            self._leave(line, run.id)
            line.active.remove(run.id)
            if was_there:
                self.turn(name)
        elif run.state is not RunState.QUEUED:
            self._leave(line, run.id)
            line.active.put(run.id, run.record.request.queue_key)

    def _enter(self, line: Line, run: Run) -> None:
        if run.id not in self._waits:
            request = run.record.request
            self._number += 1
            number = self._number if self._places is None else int(run.created * 1e6)
            place = Place(run_id=run.id, key=request.queue_key, priority=request.priority, number=number)
            self._waits[run.id], self._runs[run.id] = place, run
            line.waiting.add(place)

    def _leave(self, line: Line, run_id: str) -> None:
        if (place := self._waits.pop(run_id, None)) is not None:
            del self._runs[run_id]
            line.waiting.remove(place)

    async def wait_for_turn(self, run: Run) -> None:
        """Until the run may begin, or has ended."""
        name = run.record.request.queue
        if name is not None:
            self.turn(name)
            await run.until(lambda: run.state is not RunState.QUEUED or self._may_begin(name, run.id))

    def _may_begin(self, name: str, run_id: str) -> bool:
        return self._places is None and run_id in self._line(name).active

    def turn(self, name: str) -> None:
        """Look whose turn it is."""
        line, now = self._line(name), self._clock.time()
        if not self._is_open or (line.queue is None and not line.waiting):
            return
        if self._places is not None:
            self._wake(now, name)
            return
        if line.queue is None:
            return
        line.begun = [at for at in line.begun if at > now - line.queue.period_s]
        chosen, again_at = plan(line.queue, line.waiting.beside, line.active, line.begun, now)
        for place in chosen:
            run = self._runs[place.run_id]
            self._leave(line, place.run_id)
            line.active.put(place.run_id, place.key)
            if line.queue.rate is not None:
                line.begun.append(now)
            run.notify()
        if again_at is not None:
            self._wake(again_at, name)

    async def _turn_among(self, places: Places, name: str) -> None:
        """Look whose turn it is among the runs of all servers. Errors of the log: it is to be asked again."""
        line = self._line(name)
        if line.turn_wanted:
            return
        line.turn_wanted = True
        async with line.turning:
            line.turn_wanted = False

            async def read() -> Queue | None:
                await self._read(name)
                return line.queue

            again_s = await places.turn(name, read, line.waiting, self._runs)
            if line.queue is None:
                await self._refuse(name, [self._runs[place.run_id] for place in line.waiting])
        if again_s is not None:
            self._wake(self._clock.time() + again_s, name)

    async def _refuse(self, name: str, runs: list[Run]) -> None:
        """Another server removed the queue while these were being made here: nothing would ever begin them."""
        hint = "Make the queue again with `perdure queue create`, and start the run again."
        error = NotFound(f"the queue {name} was removed while this run was being made", hint=hint).to_json()
        for run in runs:
            if run.driven:
                with suppress(Conflict):  # it has ended meanwhile
                    await ends.end(run, RunState.FAILED, error, 0.0)

    # -- queues

    async def refresh(self) -> None:
        """What is to be shown is to be that of all servers."""
        if self._places is None:
            return
        await self._read()
        for name, line in list(self._lines.items()):
            line.elsewhere, line.active = [], await self._places.active(name)
        beyond = None
        while page := await self._context.heads(states=[RunState.QUEUED], limit=PAGE, beyond=beyond):
            for head in page:
                request = from_head(head).request
                if request.queue is not None and head.run_id not in self._waits:
                    number = int(head.created * 1e6)
                    place = Place(run_id=head.run_id, key=request.queue_key, priority=request.priority, number=number)
                    self._line(request.queue).elsewhere.append(place)
            beyond = page[-1].run_id

    def _get(self, name: str) -> Queue:
        line = self._lines.get(name)
        if line is None or line.queue is None:
            raise NotFound(
                f"no such queue: {name}", hint="`perdure queue ls` lists them, `perdure queue create` makes one."
            )
        return line.queue

    def show(self, name: str) -> dict[str, Any]:
        """The queue, how many runs wait in it and are active, and the next that wait."""
        queue, line = self._get(name), self._lines[name]
        waiting = sorted([*line.waiting, *line.elsewhere], key=order)
        runs = {"waiting": len(waiting), "active": len(line.active)}
        return {**msgspec.structs.asdict(queue), **runs, "next": [place.run_id for place in waiting[:SHOWN_MAX]]}

    def all(self) -> Iterable[dict[str, Any]]:
        """By name."""
        return [self.show(name) for name in sorted(self._lines) if self._lines[name].queue is not None]

    async def create(self, queue: Queue) -> dict[str, Any]:
        """InvalidValue names the field. Conflict: there is one of this name."""
        queue.check()
        queue = msgspec.structs.replace(queue, created=self._clock.time())
        await self._context.keep(KIND, queue.name, msgspec.to_builtins(queue), expected_version=0)
        return await self._set(queue)

    async def change(self, name: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Replace some fields; what waits is looked at again by the new limits."""
        if self._places is not None:
            await self._read(name)
        try:
            queue = msgspec.convert({**msgspec.structs.asdict(self._get(name)), **changes, "name": name}, Queue)
        except msgspec.ValidationError as error:
            raise InvalidValue(f"queue {name}: {error}") from error
        queue.check()
        await self._context.keep(KIND, name, msgspec.to_builtins(queue))
        return await self._set(queue)

    async def _set(self, queue: Queue) -> dict[str, Any]:
        if self._places is not None:
            await self._places.touch(queue.name)
        self._line(queue.name).queue = queue
        self.turn(queue.name)
        return self.show(queue.name)

    async def remove(self, name: str) -> None:
        """Conflict: runs wait in it."""
        await self.refresh()  # another server may have made it
        self._get(name)
        line = self._lines[name]
        if waiting := len(line.waiting) + len(line.elsewhere) + line.expected:
            hint = "Pause it, and cancel them or wait until they have begun."
            raise Conflict(f"{waiting} runs wait in the queue {name}", hint=hint, waiting=waiting)
        line.queue = None  # from now on no run is started in it
        await self._context.drop(KIND, name)
        if self._places is not None:
            await self._places.touch(name)
