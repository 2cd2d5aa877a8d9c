"""The main process of a sandbox: its output goes into the log, its exit ends the sandbox."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from perdure.errors import PerdureError
from perdure.execution.guest.session import Process
from perdure.execution.sandboxes.logfile import LogFile

OUTPUT_GRACE_S = 2.0  # for output that is still on its way when the exit arrives (a child may hold the pipe for ever)
FULL_DISK_RETRY_S = 1.0

_log = logging.getLogger(__name__)


class MainProcess:
    """Carries output to the log, acknowledging what is in it; then calls ``on_exit(process, status)``."""

    def __init__(self, process: Process, log: LogFile, on_exit: Callable[[Process, int], Awaitable[None]]) -> None:
        self.process = process
        self._log = log
        self._on_exit = on_exit
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        pump = asyncio.create_task(self._pump())
        try:
            status = await self.process.wait()
            await asyncio.wait({pump}, timeout=OUTPUT_GRACE_S)
        except PerdureError:
            return  # the machine is gone: whoever watches it says so
        finally:
            pump.cancel()
        await self._on_exit(self.process, status)

    async def _pump(self) -> None:
        try:
            async for stream, offset, data in self.process.output():
                # after a restore the guest may send again what the log has
                fresh = data[max(0, self._log.positions[stream] - offset) :]
                if fresh:
                    await self._write(stream, fresh)
                self.process.ack(stream, offset + len(data))
        except PerdureError:
            pass  # as above

    async def _write(self, stream: int, data: bytes) -> None:
        while True:
            try:
                self._log.append(stream, data)
                return
            except OSError as error:
                # not acknowledged, so the guest holds it, and in the end its writer waits: nothing is lost
                _log.warning("%s: %s; trying again", self._log.path, error)
                await asyncio.sleep(FULL_DISK_RETRY_S)

    @property
    def over(self) -> bool:
        return self._task.done()

    def cancel(self) -> None:
        self._task.cancel()
