"""Starting and ending the daemons of a home, for ``up`` and ``down``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from perdure.client.node import NodeClient
from perdure.client.server import ServerClient
from perdure.errors import AlreadyRunning, Conflict, MachineFailed, NotFound, PerdureError, Unavailable
from perdure.gateway.offline_process import OfflineProcess
from perdure.host.paths import Home
from perdure.host.processes import whole
from perdure.linux.readiness import readable
from perdure.model import SandboxState

START_S = 60.0
STOP_S = 20.0
LOOK_S = 0.02


def refuse_second(home: Home) -> None:
    """``AlreadyRunning`` when a server answers for this home."""
    try:
        status = ServerClient(home).status()
    except Unavailable:
        return
    raise AlreadyRunning(
        f"a server (pid {status['pid']}) already serves {home.root}",
        hint="use it, end it with 'perdure down', or set PERDURE_HOME to another folder",
        pid=status["pid"],
    )


def start_server(home: Home) -> dict[str, Any]:
    """Start perdured in the background; its status once it answers. Raises its own words when it ends instead."""
    log = home.run / "perdured.log"
    environ = {**os.environ, "PERDURE_HOME": str(home.root), "PERDURE_CACHE": str(home.cache)}
    process: subprocess.Popen[bytes] | None = None
    try:
        with log.open("ab") as output, whole():
            beginning = output.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "perdure.server"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", env=environ, start_new_session=True,
            )  # fmt: skip
        return _first_answer(home, process, log, beginning)
    except BaseException:  # also Ctrl-C: a server that nobody saw answer is nobody's
        if process is not None:
            process.kill()
            process.wait()
        raise


def _first_answer(home: Home, process: subprocess.Popen[bytes], log: Path, beginning: int) -> dict[str, Any]:
    deadline = time.monotonic() + START_S
    client = ServerClient(home)
    while True:
        try:
            status = client.status()
            process.returncode = 0  # a daemon now: nobody waits for it
            return status
        except Unavailable:
            if process.poll() is not None:
                words = _words(log, beginning)
                raise Unavailable(f"the server did not start: {words}", hint=f"its log is {log}") from None
            if time.monotonic() > deadline:
                raise Unavailable(f"the server did not start in {START_S:.0f} s", hint=f"its log is {log}") from None
            time.sleep(LOOK_S)


def _words(log: Path, beginning: int) -> str:
    with log.open("rb") as file:
        file.seek(beginning)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return "; ".join(lines[-2:]) or "it said nothing"


def stop_all(home: Home) -> list[str]:
    """End what serves this home; what was ended, in words."""
    ended = []
    if _stop_server(home):
        ended.append("server")
    node = NodeClient(home)
    try:
        sandboxes = [info for info in node.list(everything=False) if info.spec.calls is not None]
    except Unavailable:
        sandboxes = None
    ended += _kill(node, [info.id for info in sandboxes or [] if info.state != SandboxState.SUSPENDED])
    if OfflineProcess(home).stop():
        ended.append("offline model")
    if sandboxes is not None:
        node.shutdown()
        ended.append("node")
    return ended


def _kill(node: NodeClient, sandboxes: list[str]) -> list[str]:
    """End their machines at once, as if they had died: the next server recovers the runs. One that does not end in
    time is named and left: everything else is to end all the same."""
    ended: list[str] = []

    def kill(sandbox: str) -> None:
        try:
            node.kill(sandbox)
            ended.append(f"microVM {sandbox}")
        except (Conflict, NotFound):
            pass  # it ended by itself meanwhile
        except PerdureError as error:
            sys.stderr.write(f"perdure: {error}\n")

    threads = {sandbox: threading.Thread(target=kill, args=[sandbox], daemon=True) for sandbox in sandboxes}
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + STOP_S
    for sandbox, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            sys.stderr.write(f"perdure: microVM {sandbox} does not end\n  'fcrun host stop' ends all of them\n")
    return ended


def _stop_server(home: Home) -> bool:
    try:
        pid = int(ServerClient(home).status()["pid"])
    except Unavailable:
        return False
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        if not readable(handle, STOP_S):
            signal.pidfd_send_signal(handle, signal.SIGKILL)  # everything it acknowledged is on disk
            if not readable(handle, STOP_S):
                raise MachineFailed(f"the server (pid {pid}) does not end")
    finally:
        os.close(handle)
    return True
