"""Unmodified Firecracker doing the least it can with the same guest, in the kernel that runs the VMs. For bench.py.

    python raw.py STEP PLAN     PLAN: a JSON object that bench.py writes; prints JSON: name -> seconds

STEP is ``boot`` (boot, ten turns, full snapshot), ``round`` (restore, one more turn, diff snapshot: so bench.py can
measure ours right beside it) or ``clear``.

One process, one thread, no keeper, no pager, no template: boot, full snapshot, restore from the raw file, diff
snapshot. The guest and its workload are those of the product, so it is spoken to in guestd's frames; what is sent after
a restore is one write. Memory and device state lie in tmpfs, as fast as this kernel has it.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from perdure.execution.machine import configuration
from perdure.execution.machine.api import Api
from perdure.formats import channel

AGENT = 7  # the process's number in the guest
DEADLINE_S = 120.0


class Guest:
    """One Firecracker in the working directory, from its start; the clock starts with it."""

    def __init__(self, firecracker: str) -> None:
        for path in (configuration.API_PATH, configuration.VSOCK_PATH, "vsock.sock_4751"):
            if os.path.exists(path):  # noqa: PTH110 - pathlib is slow to import below the line
                os.unlink(path)  # noqa: PTH108
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{configuration.VSOCK_PATH}_{configuration.GUEST_PORT}")
        self._listener.listen()
        self._listener.settimeout(DEADLINE_S)
        self._connection: socket.socket | None = None
        self._reader = channel.FrameReader()
        self._waiting: deque[channel.Frame] = deque()
        self._request = random.getrandbits(62)  # guestd answers a number that it knows without doing anything again
        self.heard: dict[int, channel.GuestProcess] = {}
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [firecracker, "--api-sock", configuration.API_PATH, "--level", "Error"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while True:
            try:
                self.api = Api(configuration.API_PATH)
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > self.began + DEADLINE_S:
                    raise
                select.select([], [], [], 0.001)  # Firecracker does not say when its API is there

    def since(self) -> float:
        return time.monotonic() - self.began

    def greet(self) -> float:
        """Wait until the guest has dialled and said what it is; the time since the start."""
        self._connection, _ = self._listener.accept()
        self._connection.settimeout(DEADLINE_S)
        self._reader = channel.FrameReader()
        for frame in self.frames():
            if isinstance(frame, channel.GuestProcess):
                self.heard[frame.process] = frame
            elif isinstance(frame, channel.Synced):
                return self.since()
        raise AssertionError("frames end with an error")

    def frames(self) -> Iterator[channel.Frame]:
        """What the guest says, each frame once, also over several of these loops."""
        assert self._connection is not None
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            data = self._connection.recv(65536)
            if not data:
                raise EOFError("the guest hung up")
            self._waiting.extend(self._reader.feed(data))

    def send(self, *frames: channel.Frame) -> None:
        assert self._connection is not None
        self._connection.sendall(b"".join(frame.encode() for frame in frames))

    def number(self) -> int:
        self._request += 1
        return self._request

    def ask(self, frame: Any) -> None:
        """Send a request and wait for its answer."""
        self.send(frame)
        for answer in self.frames():
            if isinstance(answer, channel.Reply) and answer.request == frame.request:
                if answer.code != channel.REPLY_OK:
                    raise RuntimeError(f"{type(frame).__name__}: {answer.message}")
                return

    def read_line(self, process: int) -> bytes:
        """The rest of the line that a process writes, acknowledged."""
        line = b""
        for frame in self.frames():
            if isinstance(frame, channel.Output) and frame.process == process:
                line += frame.data
                self.send(channel.OutputAck(process, frame.stream, frame.offset + len(frame.data)))
                if line.endswith(b"\n"):
                    return line
            elif isinstance(frame, channel.Exited) and frame.process == process:
                raise RuntimeError(f"process {process} ended with {frame.exit_status} after {line!r}")
        raise AssertionError("frames end with an error")

    def execute(self, process: int, argv: list[str], environment: dict[str, str], *, stdin: bool) -> None:
        settings = tuple(f"{name}={value}" for name, value in environment.items())
        flags = channel.EXEC_STDIN if stdin else 0
        self.ask(channel.Exec(self.number(), process, flags, 0, 0, "", "", tuple(argv), settings))

    def wake(self) -> channel.Wake:
        return channel.Wake(self.number(), int(time.time() * 1e9), os.urandom(64), "", "")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for one in (self.api, self._listener, self._connection):
            if one is not None:
                one.close()


def boot(plan: dict[str, Any]) -> dict[str, float]:
    """Cold boot to guestd, and on to the first line of a program of the image; the agent's turns; full snapshot."""
    os.makedirs(plan["folder"])  # noqa: PTH103
    os.chdir(plan["folder"])
    for name in ("image", "kernel", "initrd"):
        os.symlink(plan[name], name)  # noqa: PTH211
    _copy(plan["overlay"], "overlay")
    drives = [{"id": "image", "path": "image", "read_only": True}, {"id": "overlay", "path": "overlay"}]
    guest = Guest(plan["firecracker"])
    try:
        for method, path, body in configuration.boot_requests({**plan, "drives": drives}):
            guest.api.call(method, path, body)
        booted = guest.greet()
        guest.send(channel.Welcome(channel.VERSION))
        guest.ask(channel.Configure(guest.number(), 60_000, "raw"))
        guest.execute(1, plan["command"], plan["environment"], stdin=False)
        guest.read_line(1)
        ran = guest.since()
        guest.execute(AGENT, plan["agent"], plan["environment"], stdin=True)
        guest.read_line(AGENT)
        told = 0
        for turn in range(plan["turns"]):
            word = f"turn {turn}\n".encode()
            guest.send(channel.Stdin(AGENT, told, word))
            told += len(word)
            guest.read_line(AGENT)
        guest.ask(channel.Quiesce(guest.number(), 10_000))
        full = snapshot(guest, "Full")
    finally:
        guest.end()
    _copy("overlay", "overlay.captured")  # memory and disk of one moment, for every round
    with open("told", "w") as file:  # noqa: PTH123
        file.write(str(told))
    return {"cold boot": booted, "cold run": ran, "full snapshot": full}


def snapshot(guest: Guest, kind: str) -> float:
    """Pause and capture; how long the guest stood still."""
    began = time.monotonic()
    guest.api.pause()
    guest.api.create_snapshot(kind, f"{kind}.state", f"{kind}.memory")
    return time.monotonic() - began


def one_round(plan: dict[str, Any]) -> dict[str, float]:
    """From the raw file to the workload's answer to one more turn; then a diff snapshot."""
    os.chdir(plan["folder"])
    _copy("overlay.captured", "overlay")
    with open("told") as file:  # noqa: PTH123
        told = int(file.read())
    guest = Guest(plan["firecracker"])
    try:
        guest.api.load_snapshot("Full.state", "File", "Full.memory")
        guest.api.resume()
        dialled = guest.greet()
        turn = channel.Stdin(AGENT, told, b"one more turn\n")
        guest.send(channel.Welcome(channel.VERSION), guest.wake(), turn)
        guest.read_line(AGENT)
        answered = guest.since()
        guest.ask(channel.Quiesce(guest.number(), 10_000))
        diff = snapshot(guest, "Diff")
    finally:
        guest.end()
    size = os.stat("Diff.memory").st_blocks * 512  # noqa: PTH116
    for part in ("Diff.state", "Diff.memory"):
        os.unlink(part)  # noqa: PTH108
    return {"restore, guestd": dialled, "restore": answered, "diff snapshot": diff, "diff bytes": size}


def clear(plan: dict[str, Any]) -> dict[str, float]:
    shutil.rmtree(plan["folder"], ignore_errors=True)
    return {}


def _copy(source: str, target: str) -> None:
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


if __name__ == "__main__":
    step = {"boot": boot, "round": one_round, "clear": clear}[sys.argv[1]]
    print(json.dumps(step(json.loads(sys.argv[2]))))
