"""The guest that the benchmark is about, and how it is spoken to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from perdure.client.node import NodeClient
from perdure.client.session import Session
from perdure.model import SandboxSpec

IMAGE = "perdure-bench"
PACKAGES = ["python3-minimal", "libpython3-stdlib"]
MEMORY_MIB = 512
DISK_MIB = 512
TURNS = 10
# An agent between turns: its libraries loaded, the conversation in memory, blocked on its next input.
AGENT = """
import hashlib, http.client, json, sys, urllib.request
messages = []
print("ready", flush=True)
for line in sys.stdin:
    context = [hashlib.sha256(b"%d %d" % (len(messages), n)).hexdigest() for n in range(64)]
    messages.append({"role": "user", "content": line, "context": context})
    text = json.dumps(messages)
    print(len(messages), hashlib.sha256(text.encode()).hexdigest(), flush=True)
"""


class Talk:
    """Lines to and from the agent, each with the time at which it came."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lines = self._read()

    def _read(self) -> Iterator[float]:
        rest = b""
        for _, data in self._session.outputs():
            *lines, rest = (rest + data).split(b"\n")
            now = time.monotonic()
            for _ in lines:
                yield now

    def say(self, line: str) -> None:
        self._session.send_stdin(line.encode() + b"\n")

    def hear(self) -> float:
        return next(self._lines)


@contextmanager
def agent(client: NodeClient) -> Iterator[tuple[str, Talk]]:
    """A sandbox whose agent has taken its turns."""
    spec = SandboxSpec(
        image=IMAGE,
        command=["python3", "-c", AGENT],
        stdin=True,
        memory_mib=MEMORY_MIB,
        disk_mib=DISK_MIB,
    )
    ref = client.start(client.create(spec).id).id
    try:
        with client.attach(ref, logs=True) as session:
            talk = Talk(session)
            talk.hear()
            for turn in range(TURNS):
                talk.say(f"turn {turn}")
                talk.hear()
            yield ref, talk
    finally:
        client.remove(ref, force=True)
