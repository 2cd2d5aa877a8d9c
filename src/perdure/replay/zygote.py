"""``python -P -m perdure.replay.zygote DESCRIPTOR``: the warm process that workers are forked from.

It has imported all that a worker needs, and nothing else: no thread, no connection, no secret. The descriptor is its
end of a socket pair (SOCK_SEQPACKET, one JSON message each) to the server, with which it and its workers end.

    server  {"start": WORKER, "agent": PATH:FUNCTION, "folder", "env", "calls": {url, run_id, epoch, token},
            "silent", "packages": a folder of those that the agent requires, or ""}
            and one descriptor: what the worker prints to
            {"end": WORKER}        kill -9, with all that it started; nothing where it has ended
    zygote  {"ready": true}
            {"ended": WORKER, "status": N or -SIGNAL, "out_of_memory": bool}
"""

from __future__ import annotations

import asyncio  # noqa: F401 - agents that are coroutines need it: imported once here
import gc
import json
import os
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import perdure.agent.tasks
import perdure.replay.asyncdoor  # noqa: F401 - the same
from perdure.linux import process
from perdure.replay import worker

MESSAGE_MAX = 1 << 20
WORKER_OOM_SCORE = b"500"  # a worker goes before its server


class Zygote:
    """Forks, waits, kills. ``run`` returns when the server has gone."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._workers: dict[str, process.Process] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(server, selectors.EVENT_READ)
        self._kills = _out_of_memory_kills()

    def run(self) -> None:
        self._tell({"ready": True})
        gc.collect()
        gc.freeze()  # what is here already stays shared with the workers
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.data is not None:
                        self._ended(key.data)
                    elif not self._obey():
                        return
        except ConnectionError:
            return
        finally:
            for one in self._workers.values():
                _kill(one)

    def _tell(self, message: dict[str, Any]) -> None:
        self._server.send(json.dumps(message).encode())

    def _obey(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._server, MESSAGE_MAX, 1)
        if not data:
            return False
        order = json.loads(data)
        if "start" in order:
            self._start(order, descriptors[0])
        elif (one := self._workers.get(order["end"])) is not None:
            _kill(one)
        return True

    def _start(self, order: dict[str, Any], output: int) -> None:
        def run() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            Path("/proc/self/oom_score_adj").write_bytes(WORKER_OOM_SCORE)
            worker.live(order, output)

        name = order["start"]
        one = self._workers[name] = process.fork(run, keep=[output])
        os.close(output)
        self._selector.register(one.pidfd, selectors.EVENT_READ, name)

    def _ended(self, name: str) -> None:
        one = self._workers[name]
        _kill(one)  # what it started and left, before its pid is anybody else's
        status = one.wait()
        del self._workers[name]
        self._selector.unregister(one.pidfd)
        one.close()
        kills, before = _out_of_memory_kills(), self._kills
        self._kills = kills
        is_memory = status == -signal.SIGKILL and kills > before
        self._tell({"ended": name, "status": status, "out_of_memory": is_memory})


def _kill(one: process.Process) -> None:
    """A worker and all that it started, as long as it is not reaped: its pid names its group."""
    one.kill()
    try:
        os.killpg(one.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # it has no group of its own yet, or what is in it is somebody else's by now


def _out_of_memory_kills() -> int:
    """How many processes this kernel has ended for want of memory (/proc/vmstat, oom_kill)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal is the server's: it ends us in order
    Zygote(socket.socket(fileno=int(arguments[0]))).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
