"""Schedules: what is started when. A due moment starts one run, whatever happens: its key is the moment, in the
schedule's scope.

A schedule is kept in the log's database, with the last moment that was done. The run is started before that is
written; a server that ends in between finds the moment due again, and the key gives the same run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec

from perdure.context.log import ContextLog, Kept
from perdure.errors import InvalidValue, LogConflict, NoSpace, NotFound, PerdureError, Unavailable, from_json
from perdure.model import Frozen, RunInfo, new_id
from perdure.runs.clock import Clock
from perdure.runs.cron import LONGEST_S, Cron, Every
from perdure.runs.packs import Packs
from perdure.runs.record import StartRequest

KIND = "schedule"
LATE_S = 60.0  # a moment that is done later than that was missed
LOOK_S = 60.0
CATCH_UP_MAX = 1000
NEXT_SHOWN = 5


class Schedule(Frozen, frozen=True, kw_only=True):
    """One schedule: by ``cron`` in a ``zone``, or every ``every_s`` seconds since it was made."""

    name: str
    request: StartRequest  # without its source
    source: str | None = None  # digest of the blob that has it
    cron: str = ""
    zone: str = "UTC"
    every_s: float | None = None
    jitter_s: float = 0.0  # it is due later by a part of it, which its name decides
    catch_up: Literal["none", "last", "all"] = "last"  # of the moments that were missed
    catch_up_max: int = 10  # of all
    paused: bool = False
    created: float = 0.0
    done: float = 0.0  # the last moment that was done
    last_run: str = ""
    error: dict[str, Any] | None = None  # why the last one started nothing

    def dues(self) -> Cron | Every:
        """InvalidValue names the field."""
        if bool(self.cron) == (self.every_s is not None):
            raise InvalidValue("a schedule is either by cron or by every_s", hint='Give "cron", or "every_s".')
        if self.every_s is not None:
            return Every(self.every_s, self.created)
        return Cron(self.cron, self.zone)

    def check(self) -> None:
        """Raises InvalidValue naming the field."""
        if not 0 < len(self.name) <= 100 or not self.name.isprintable() or set(self.name) & set("/ ?#"):
            hint = "It has 1 to 100 printable characters, and none of / ? # or space."
            raise InvalidValue(f"not the name of a schedule: {self.name!r}", hint=hint)
        self.dues()
        if not 0 <= self.jitter_s <= LONGEST_S:
            raise InvalidValue(f"jitter_s is {self.jitter_s:g}", hint="It is a number of seconds from 0 on.")
        if not 1 <= self.catch_up_max <= CATCH_UP_MAX:
            raise InvalidValue(f"catch_up_max is {self.catch_up_max}", hint=f"It is from 1 to {CATCH_UP_MAX}.")
        if self.request.key is not None:
            raise InvalidValue("a schedule's runs have keys of its own", hint="Leave the key out.")

    @property
    def offset_s(self) -> float:
        """How much later than its moments it is due: always the same, so that schedules spread and intervals stay."""
        drawn = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big") / 2**64
        return self.jitter_s * drawn

    def next_at(self) -> float:
        """When the next moment is due."""
        return self.dues().after(self.done) + self.offset_s

    def due(self, now: float) -> list[float]:
        """The moments to start runs for now, oldest first, by what is to be caught up with."""
        count = self.catch_up_max if self.catch_up == "all" else 1
        if self.catch_up == "none":
            count = CATCH_UP_MAX
        moments = [at for at in self.dues().before(now - self.offset_s, count) if at > self.done]
        if self.catch_up == "none":
            return [at for at in moments if now - self.offset_s - at <= LATE_S]
        return moments


class Starter(Protocol):
    async def start(self, request: StartRequest) -> tuple[RunInfo, bool]: ...


class Schedules:
    """``wake(moment, name)``: have ``turn`` called at that moment."""

    def __init__(
        self,
        context: ContextLog,
        starter: Starter,
        packs: Packs,
        clock: Clock,
        wake: Callable[[float, str], None],
    ) -> None:
        self._context = context
        self._starter = starter
        self._packs = packs
        self._clock = clock
        self._wake = wake

    async def open(self) -> None:
        """What is due is done soon. Looked at again now and then: another server on the same database may have made
        some, and be gone."""
        for kept in await self._context.kept(KIND):
            self._wind(_schedule(kept))
        self._wake(self._clock.time() + LOOK_S, "")

    def _wind(self, schedule: Schedule) -> None:
        if not schedule.paused:
            self._wake(schedule.next_at(), schedule.name)

    async def turn(self, name: str) -> None:
        """Start what is due. Raises what may pass (a full disk …): it is to be asked again."""
        if not name:
            await self.open()
            return
        found = await self._context.kept(KIND, name)
        if not found:
            return
        schedule, now = _schedule(found[0]), self._clock.time()
        if schedule.paused or schedule.next_at() > now:
            self._wind(schedule)
            return
        changes: dict[str, Any] = {"done": now - schedule.offset_s}
        for moment in schedule.due(now):
            changes |= await self._start(schedule, f"{moment:.3f}", moment)
        after = msgspec.structs.replace(schedule, **changes)
        await self._context.keep(KIND, name, msgspec.to_builtins(after), expected_version=found[0].version)
        self._wind(after)

    async def _start(self, schedule: Schedule, key: str, moment: float) -> dict[str, Any]:
        request = schedule.request
        source = (await self._context.get_blob(schedule.source)).decode() if schedule.source else ""
        metadata = request.metadata
        if metadata is None:
            metadata = {"schedule": schedule.name, "moment": moment}
        request = msgspec.structs.replace(
            request,
            source=source,
            key=key,
            key_scope=f"schedule:{schedule.name}:{schedule.created:.3f}"[:256],
            tags={**request.tags, "schedule": schedule.name},
            metadata=metadata,
        )
        try:
            info, _ = await self._starter.start(request)
        except (Unavailable, NoSpace):
            raise
        except PerdureError as error:  # it would be refused again: told, and the next moment is next
            return {"error": error.to_json()}
        return {"last_run": info.id, "error": None}

    # -- what people ask

    async def _get(self, name: str) -> tuple[Schedule, int]:
        found = await self._context.kept(KIND, name)
        if not found:
            hint = "`perdure schedule ls` lists them, `perdure schedule create` makes one."
            raise NotFound(f"no such schedule: {name}", hint=hint)
        return _schedule(found[0]), found[0].version

    async def create(self, schedule: Schedule) -> dict[str, Any]:
        """InvalidValue names the field. Conflict: there is one of this name."""
        now = self._clock.time()
        schedule = msgspec.structs.replace(schedule, created=now, done=now)
        schedule.request.check()
        schedule.check()
        source = schedule.request.source
        digest = await self._context.put_blob(source.encode()) if source else None
        packed = await self._packs.of(schedule.request)
        request = msgspec.structs.replace(schedule.request, source="", modules={}, pack=packed)
        schedule = msgspec.structs.replace(schedule, request=request, source=digest)
        await self._context.keep(KIND, schedule.name, msgspec.to_builtins(schedule), expected_version=0)
        self._wind(schedule)
        return self._show(schedule)

    async def all(self) -> list[dict[str, Any]]:
        """By name."""
        return [self._show(_schedule(kept)) for kept in await self._context.kept(KIND)]

    async def show(self, name: str) -> dict[str, Any]:
        return self._show((await self._get(name))[0])

    def _show(self, schedule: Schedule) -> dict[str, Any]:
        coming, dues = list[float](), schedule.dues()
        at = max(schedule.done, self._clock.time() - schedule.offset_s)
        while len(coming) < NEXT_SHOWN and not schedule.paused:
            at = dues.after(at)
            coming.append(at + schedule.offset_s)
        shown = msgspec.structs.asdict(schedule)
        del shown["source"]
        return {**shown, "request": msgspec.to_builtins(schedule.request), "next": coming}

    async def pause(self, name: str, paused: bool) -> dict[str, Any]:
        """A pause is no time that is caught up with."""
        schedule, version = await self._get(name)
        if schedule.paused is not paused:
            done = schedule.done if paused else max(schedule.done, self._clock.time() - schedule.offset_s)
            schedule = msgspec.structs.replace(schedule, paused=paused, done=done)
            await self._context.keep(KIND, name, msgspec.to_builtins(schedule), expected_version=version)
            self._wind(schedule)
        return self._show(schedule)

    async def remove(self, name: str) -> None:
        await self._get(name)
        await self._context.drop(KIND, name)

    async def run(self, name: str) -> str:
        """Start a run of it now, beside what is due; its id. Raises what the start is refused with."""
        schedule, _ = await self._get(name)
        started = await self._start(schedule, f"by hand {new_id()}", self._clock.time())
        if started["error"] is not None:
            raise from_json(started["error"])
        run_id: str = started["last_run"]
        await self._ran(name, run_id)
        return run_id

    async def _ran(self, name: str, run_id: str) -> None:
        while found := await self._context.kept(KIND, name):
            after = msgspec.structs.replace(_schedule(found[0]), last_run=run_id, error=None)
            try:
                await self._context.keep(KIND, name, msgspec.to_builtins(after), expected_version=found[0].version)
                return
            except (LogConflict, NotFound):  # what is due was started meanwhile, or it was changed
                continue


def _schedule(kept: Kept) -> Schedule:
    return msgspec.convert(kept.value, Schedule)
