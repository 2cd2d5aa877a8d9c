"""A sandbox's machine while there is one: its keeper, joined to the guest's session, watched until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from perdure.errors import MachineFailed, NotFound, PerdureError, Unavailable
from perdure.execution.guest.session import GuestSession
from perdure.execution.machine.remote import Keeper, Launcher
from perdure.execution.sandboxes.feeding import Feeder, Frames
from perdure.model import LauncherAddress

END_TIMEOUT_S = 30.0
STRAY_TIMEOUT_S = 10.0  # of one that did not end when it was told to, or that nobody here knows
DYING_S = 2.0  # a process that was killed closes its connections some time before it counts as dead
LOOK_S = 0.05
SILENT_S = 30.0  # an emulated guest on a busy machine takes seconds

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


class Machine:
    """``on_death(cause, detail)`` is called once, unless the machine was ended on purpose."""

    def __init__(
        self, launcher: Launcher, keeper: Keeper, session: GuestSession, on_death: Callable[[str, str], None]
    ) -> None:
        self.keeper = keeper
        self.session = session
        self.facts: dict[str, Any] = dict(keeper.facts)
        self._launcher = launcher
        self._on_death = on_death
        self._over = False
        self._feeder: Feeder | None = None
        self._wanted: Frames = []  # by its pager, before there was a feeder
        self._dead: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
        keeper.listen(self._event)
        keeper.connect_channel(session)
        self._watching = asyncio.create_task(self._watch())

    @property
    def address(self) -> LauncherAddress:
        """Of the launcher that it is below."""
        return self._launcher.address

    @property
    def over(self) -> bool:
        return self._over

    def _event(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind == "exited":
            self._died(str(event.get("cause", "machine-died")), str(event.get("detail", "")))
        elif kind == "pager-want":
            frames = [(int(layer), int(number)) for layer, number in event["frames"]]
            if self._feeder is not None:
                self._feeder.want(frames)
            else:
                self._wanted += frames
        elif kind == "pager-resident" and self._feeder is not None:
            self._feeder.leave()
            self._feeder = None

    def feed(self, feeder: Feeder) -> None:
        """Let it bring what the machine's pager wants and has wanted. The machine closes it."""
        self._feeder = feeder
        feeder.join(self.keeper.request)
        wanted, self._wanted = self._wanted, []
        if wanted:
            feeder.want(wanted)

    @property
    def fed(self) -> dict[str, int]:
        """What was fetched for it, while it is fed."""
        return self._feeder.figures if self._feeder is not None else {}

    async def _watch(self) -> None:
        """The keeper's connection ended without a word: find out why."""
        await asyncio.shield(self.keeper.closed)
        if self._over:
            return
        cause, detail = await why_gone(self._launcher, self.keeper.sandbox_id)
        if cause == "node-lost":  # it lives, and nobody hears it: it must not run on beside the next one
            with contextlib.suppress(PerdureError, OSError):
                await end_stray(self._launcher, self.keeper.sandbox_id)
        self._died(cause, detail)

    def _died(self, cause: str, detail: str) -> None:
        if not self._over:
            self._over = True  # its keeper, if it lives, waits for ``end``
            if self._feeder is not None:
                self._feeder.stop()
            self._dead.set_result((cause, detail))
            self._on_death(cause, detail)

    async def request(self, op: str, **params: Any) -> dict[str, Any]:
        """An operation of the keeper (contract 3). Raises MachineFailed when it is gone."""
        return await self.keeper.request(op, **params)

    async def outlives(self, work: Awaitable[Result]) -> Result:
        """The result of ``work``, which waits for the guest. Raises MachineFailed when the machine dies meanwhile."""
        task = asyncio.ensure_future(work)
        first: set[asyncio.Future[Any]] = {task, self._dead}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            cause, detail = self._dead.result()
            raise MachineFailed(f"the machine died meanwhile ({cause}): {detail}", cause=cause)
        finally:
            task.cancel()

    async def answered(self, work: Awaitable[Result], within_s: float) -> Result:
        """The same for what a guest does within a known time. Raises MachineFailed also where it stays silent."""
        try:
            async with asyncio.timeout(within_s + SILENT_S):
                return await self.outlives(work)
        except TimeoutError:
            raise MachineFailed(
                f"the guest did not answer for {within_s + SILENT_S:g} s",
                hint="It may be too busy, or hang. End it with: fcrun kill",
            ) from None

    async def kill(self) -> None:
        """End it as if it had died: what is under way in it fails."""
        try:
            await self.keeper.request("end", timeout_s=END_TIMEOUT_S)
        except (PerdureError, TimeoutError) as error:
            _log.info("kill of %s: %s", self.keeper.sandbox_id, error)
        self._died("killed", "it was killed on request")

    async def end(self) -> None:
        """End it and its keeper, or what is left of them; never raises for what is gone already."""
        self._over = True
        self._watching.cancel()
        try:
            await self.keeper.request("end", timeout_s=END_TIMEOUT_S)
        except (PerdureError, TimeoutError):
            try:  # its connection may have broken while it lives
                await end_stray(self._launcher, self.keeper.sandbox_id)
            except (PerdureError, OSError) as error:
                _log.info("end of %s: %s", self.keeper.sandbox_id, error)
        self.keeper.close()
        feeder, self._feeder = self._feeder, None
        if feeder is not None:
            await feeder.close()

    def leave(self) -> None:
        """Let go of it: the machine runs on for the next node."""
        self._over = True
        self._watching.cancel()
        self.keeper.close()
        if self._feeder is not None:
            self._feeder.leave()


async def why_gone(launcher: Launcher, sandbox_id: str) -> tuple[str, str]:
    """(cause, detail) of a machine whose keeper does not answer."""
    deadline = time.monotonic() + DYING_S
    try:
        while kept := next((kept for kept in await launcher.list() if kept.sandbox_id == sandbox_id), None):
            if not kept.alive:
                return str(kept.exit.get("cause", "keeper-died")), str(kept.exit.get("detail", ""))
            if time.monotonic() > deadline:
                return "node-lost", "another node took the keeper over"
            await asyncio.sleep(LOOK_S)
    except (Unavailable, OSError, TimeoutError) as error:
        return "host-lost", f"the launcher does not answer: {error}"
    except PerdureError as error:
        return "keeper-died", error.message
    return "keeper-died", "it left no record"


async def end_stray(launcher: Launcher, sandbox_id: str) -> None:
    """End whatever machine of this sandbox lives, and forget the record of a dead one. A keeper that does not answer is
    killed: its machine would otherwise live on beside the next one, and reach its networks."""
    try:
        keeper = await launcher.attach(sandbox_id, timeout_s=STRAY_TIMEOUT_S)
    except NotFound:
        await launcher.forget(sandbox_id)
        return
    except (PerdureError, TimeoutError) as error:
        await _kill(launcher, sandbox_id, error)
        return
    try:
        await keeper.request("end", timeout_s=STRAY_TIMEOUT_S)
    except (PerdureError, TimeoutError) as error:
        await _kill(launcher, sandbox_id, error)
    finally:
        keeper.close()


async def _kill(launcher: Launcher, sandbox_id: str, why: Exception) -> None:
    _log.warning("stray machine %s is killed: %r", sandbox_id, why)
    try:
        await launcher.kill(sandbox_id)
    except (PerdureError, OSError, TimeoutError) as error:  # an older launcher; there is no second machine all the same
        _log.warning("stray machine %s: %r", sandbox_id, error)
