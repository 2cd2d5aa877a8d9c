"""The health of a running sandbox: a probe that runs in it again and again, and what its results say.

Probes run while the sandbox does. Nothing waits for one: a suspend drops the one that is under way, and after the
resume they go on, with what was known before and with what is left of the start period. A start begins anew, and so
does a restart of the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable
from typing import Protocol

from perdure.errors import CommandNotExecutable, CommandNotFound, InvalidValue, PerdureError
from perdure.execution.guest.process import Process
from perdure.model import Health, HealthCheck, Probe
from perdure.model import SandboxState as S

PROBES_KEPT = 5
OUTPUT_MAX = 4096  # bytes kept of what one probe writes, as docker has it
OUTPUT_GRACE_S = 1.0  # for output that is still on its way when the probe has exited
TIMED_OUT = -1

_log = logging.getLogger(__name__)


class Body(Protocol):
    """What is looked after."""

    @property
    def id(self) -> str: ...

    @property
    def state(self) -> S: ...

    def health_check(self) -> HealthCheck | None:
        """How; None: not at all. Blocking."""

    async def probe(self, command: list[str]) -> Process:
        """Start one beside the main process. Raises what an exec does."""

    def discard(self, process: Process) -> None: ...

    def emit(self, kind: str, **details: object) -> None: ...


class HealthWatch:
    """Told of every change of the body's state (``moved``)."""

    def __init__(self, body: Body, clock: Callable[[], float] = time.monotonic) -> None:
        self._body = body
        self._clock = clock
        self._health: Health | None = None
        self._up_s = 0.0  # how long it has run since its start, up to the newest suspend
        self._task: asyncio.Task[None] | None = None

    @property
    def health(self) -> Health | None:
        """What is known while it runs; None: nobody looks."""
        return self._health if self._body.state is S.RUNNING else None

    def moved(self) -> None:
        """The body's state may be another now."""
        if self._body.state is S.RUNNING:
            if self._task is None:
                self._task = asyncio.create_task(self._run())
            return
        self.stop()
        if self._body.state in (S.STARTING, S.EXITED):
            self._health, self._up_s = None, 0.0

    def stop(self) -> None:
        """No more probes."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        try:
            check = await asyncio.to_thread(self._body.health_check)
        except PerdureError as error:
            _log.warning("the health of %s is not looked after: %s", self._body.id, error)
            return
        if check is None:
            return
        if self._health is None:
            self._health = Health(status="starting")
        began = self._clock()
        try:
            while True:
                starting = self._up_s + self._clock() - began < check.start_period_s
                await asyncio.sleep(check.start_interval_s if starting else check.interval_s)
                starting = self._up_s + self._clock() - began < check.start_period_s
                try:
                    self._judge(await self._probe(check), check, starting=starting)
                except PerdureError as error:  # its machine is just dying, or its guest is silent: others see to that
                    _log.info("the health of %s: %s", self._body.id, error)
        finally:
            self._up_s += self._clock() - began

    async def _probe(self, check: HealthCheck) -> Probe:
        started, output = time.time(), bytearray()
        asked = asyncio.ensure_future(self._body.probe(check.test))
        process: Process | None = None
        reading: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(check.timeout_s):
                process = await asyncio.shield(asked)
                reading = asyncio.create_task(_read(process, output))
                status = await process.wait()
                await asyncio.wait({reading}, timeout=OUTPUT_GRACE_S)
        except TimeoutError:
            output[:] = f"Health check exceeded timeout ({check.timeout_s:g}s)".encode()
            status = TIMED_OUT
            if process is not None:
                with contextlib.suppress(PerdureError):
                    await process.signal(signal.SIGKILL, group=True)
        except (CommandNotFound, CommandNotExecutable, InvalidValue) as error:
            output[:] = error.message.encode()
            status = error.exit_status if not isinstance(error, InvalidValue) else 126
        finally:
            if reading is not None:
                reading.cancel()
            asked.add_done_callback(self._over)  # also where it starts only after all
        text = bytes(output[:OUTPUT_MAX]).decode(errors="replace")
        return Probe(started=started, ended=time.time(), exit_status=status, output=text)

    def _over(self, asked: asyncio.Future[Process]) -> None:
        if not asked.cancelled() and asked.exception() is None:
            self._body.discard(asked.result())

    def _judge(self, probe: Probe, check: HealthCheck, *, starting: bool) -> None:
        before = self._health or Health(status="starting")
        status, streak = before.status, 0
        if probe.exit_status == 0:
            status = "healthy"
        elif not (starting and status == "starting"):  # else: it may fail while it starts
            streak = before.failing_streak + 1
            if streak >= check.retries:
                status = "unhealthy"
        kept = [*before.probes, probe][-PROBES_KEPT:]
        self._health = Health(status=status, failing_streak=streak, probes=kept)
        if status != before.status:
            self._body.emit(f"health_status: {status}")


async def _read(process: Process, output: bytearray) -> None:
    with contextlib.suppress(PerdureError):
        async for stream, offset, data in process.output():
            output += data[: max(0, OUTPUT_MAX - len(output))]
            process.ack(stream, offset + len(data))
