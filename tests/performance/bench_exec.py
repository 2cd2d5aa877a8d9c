"""What ``exec`` costs beside the least that it can: one byte to the guest and back, and what the guest does by itself.

The byte goes through Firecracker's vsock alone, between a program of the sandbox and one below the dotted line. What a
guest takes to start ``true`` and to see it end is taken within it, of a shell that does so many times; the rest of an
exec is the node's and the channel's.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

from perdure.client.node import NodeClient
from perdure.execution.machine.remote import Launcher
from perdure.model import ExecSpec, SandboxSpec

PORT = 5000
ROUNDS = 30
IN_GUEST = 40

ECHO = f"""
import socket
listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
listening.bind((socket.VMADDR_CID_ANY, {PORT}))
listening.listen(1)
print("up", flush=True)
while True:
    link, _ = listening.accept()
    while data := link.recv(64):
        link.sendall(data)
"""

PING = f"""
import socket, statistics, sys, time
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
link.sendall(b"CONNECT {PORT}\\n")
link.recv(64)
took = []
for _ in range(200):
    began = time.monotonic()
    link.sendall(b"x")
    link.recv(1)
    took.append(time.monotonic() - began)
print(statistics.median(took))
"""

SPAWNS = f"i=0; while [ $i -lt {IN_GUEST} ]; do /bin/true; i=$((i+1)); done"


def measure(client: NodeClient, launcher: Launcher, image: str) -> dict[str, float]:
    """Medians in seconds: ``vsock`` a byte there and back, ``exec`` of true by the API, ``guest`` what of it the guest
    takes by itself. Raises RuntimeError."""
    spec = SandboxSpec(image=image, command=["python3", "-c", ECHO])
    ref = client.start(client.create(spec).id).id
    try:
        for record in client.logs(ref, follow=True):
            if b"up" in record.data:
                break
        place = f"/proc/{client.get(ref).machine['firecracker_pid']}/cwd/vsock.sock"  # also within its jail
        vsock = float(_below(launcher, [sys.executable, "-c", PING, place]))
        execs = [_timed(client, ref, "/bin/true") for _ in range(ROUNDS)]
        shells = [_timed(client, ref, "/bin/sh", "-c", ":") for _ in range(ROUNDS // 3)]
        many = [_timed(client, ref, "/bin/sh", "-c", SPAWNS) for _ in range(3)]
    finally:
        client.remove(ref, force=True)
    guest = (statistics.median(many) - statistics.median(shells)) / IN_GUEST
    return {"vsock": vsock, "exec": statistics.median(execs), "guest": guest}


def _timed(client: NodeClient, ref: str, *command: str) -> float:
    began = time.monotonic()
    status, _, said = client.run(ref, ExecSpec(command=[*command]))
    if status != 0:
        raise RuntimeError(f"{command} ended with {status}: {said!r}")
    return time.monotonic() - began


def _below(launcher: Launcher, argv: list[str]) -> str:
    said = bytearray()
    if asyncio.run(launcher.run(argv, output=said.extend)) != 0:
        raise RuntimeError(f"{argv[0]} below the line: {said.decode()}")
    return said.decode()
