"""A real perdured of a home, and another one whenever it has died."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perdure.host.paths import Home
from perdure.testing.crash.listener import NAME, STATES
from perdure.testing.will import Will

END_S = 60.0
SERVER = (sys.executable, "-m", "perdure.server")


SETTINGS = """provider = "test"
[hooks.{hook}]
url = "{hook_url}"
states = [{states}]
[providers.test]
base_url = "{url}"
model = "tiny"
[secrets.provider]
base_url = "{url}"
value_command = ["echo", "word"]
allow = ["lost"]
[retention]
keep_days = 30
"""


@dataclass(frozen=True)
class Death:
    """Who was killed, and by when it was dead."""

    who: str  # "server", "node", or the run whose machine it was
    time: float


def write_settings(home: Home, *, provider: str, hook: str) -> None:
    """Whom its servers ask, and whom they tell; by url."""
    states = ", ".join(f'"{state}"' for state in STATES)
    text = SETTINGS.format(url=provider, hook=NAME, hook_url=hook, states=states)
    (home.root / "settings.toml").write_text(text)


class Serving:
    """``deaths`` and ``wrong`` are added to. ``crashes``: PERDURE_CRASH of the first server, of the second …"""

    def __init__(
        self,
        home: Home,
        log: Path,
        environ: Mapping[str, str],
        deaths: list[Death],
        wrong: list[str],
        crashes: Sequence[str] = (),
        *,
        command: Sequence[str] = SERVER,
        will: Will | None = None,
    ) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PERDURE", "OPENAI"))}
        place = {"PERDURE_HOME": str(home.root), "PERDURE_CACHE": str(home.cache)}
        self._environ = {**kept, **place, **environ}
        self._log, self._command, self._will = log, command, will
        self._deaths, self._wrong, self._crashes = deaths, wrong, list(crashes)
        self._ending = False
        self.process: asyncio.subprocess.Process | None = None
        self.is_killed = False  # it did not end when it was to

    async def run(self) -> None:
        while not self._ending:
            environ = {**self._environ, "PERDURE_CRASH": self._crashes.pop(0) if self._crashes else ""}
            with self._log.open("ab") as log:
                process = await asyncio.create_subprocess_exec(*self._command, env=environ, stderr=log, stdout=log)
            self.process = process
            if self._will is not None:
                self._will.kill(process.pid)
            status = await process.wait()
            if status == -signal.SIGKILL:
                self._deaths.append(Death("server", time.time()))
            elif not self._ending:
                self._wrong.append(f"a server ended by itself, with status {status}: {self.tail()}")
                await asyncio.sleep(0.5)

    def kill(self) -> bool:
        """Whether there was one to be killed."""
        process = self.process
        if process is None or process.returncode is not None:
            return False
        # not process.kill(): where it has just died, that takes its exit status from who waits for it
        os.kill(process.pid, signal.SIGKILL)
        return True

    async def end(self, serving: asyncio.Task[None]) -> None:
        """In order. serving: the task of ``run``."""
        self._ending = True
        process = self.process
        if process is not None and process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(END_S):
                await asyncio.shield(serving)
        except TimeoutError:
            self.is_killed = True
            self._wrong.append(f"the server did not end within {END_S:g} s: {self.tail()}")
            if process is not None and process.returncode is None:
                process.kill()
            serving.cancel()
            await asyncio.wait({serving})

    def tail(self) -> str:
        return self._log.read_text()[-1500:] if self._log.exists() else ""
