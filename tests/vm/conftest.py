"""The harness of the vm tests: one node on the real Firecracker, kept warm for the whole session.

The home is ``build/test-home`` (``-gw0``, ``-gw1``: of parallel processes), which outlives the session, so that assets,
template and image are made once per checkout. The node and what runs below the line (on a machine without KVM: the
emulated host) are started once and ended at the end. After each test nothing may be left of its sandboxes: no process,
no file, above or below the line.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.cli.perdure._image import ensure_default
from perdure.client.node import NodeClient, ensure_running
from perdure.client.session import Session
from perdure.errors import NotFound, PerdureError
from perdure.host.paths import Home
from perdure.model import SandboxInfo, SandboxSpec
from perdure.testing import belowline, hasty
from perdure.testing.index_fixtures import index as index

ROOT = Path(__file__).parents[2]
IMAGE = "perdure-test"
PYTHON = ("python3", "-I", "-S", "-c")  # in a guest: without what only makes its start slow
DEADLINE_S = 60.0  # for one step of a conversation: emulated guests are slow on a busy machine

Fcrun = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_report_header() -> str:
    return (
        f"vm tests: home {ROOT / 'build' / 'test-home'}, /dev/kvm {'there' if Path('/dev/kvm').exists() else 'absent'}"
    )


def share_images(home: Home) -> None:
    """Images and templates take minutes to make: what another process of these tests has is linked. Nothing writes into
    them, and a template's name says all that it was made of."""
    if (home.images / "index.json").exists():
        return
    family = home.root.name.partition("-gw")[0]
    for listed in sorted(home.root.parent.glob(f"{family}*/images/index.json")):
        with (listed.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # so that no image goes meanwhile
            for name, half_made in (("images", ("new-*", "incoming", "lock")), ("templates", ("*.new", "*.lock"))):
                shutil.copytree(
                    listed.parents[1] / name,
                    home.root / name,
                    copy_function=os.link,
                    ignore=shutil.ignore_patterns(*half_made),
                    dirs_exist_ok=True,
                )
        return


def share_templates(home: Home) -> None:
    """The same for those that another process made since: each one is a guest that boots."""
    family = home.root.name.partition("-gw")[0]
    for record in sorted(home.root.parent.glob(f"{family}*/templates/*/template.json")):
        made, place = record.parent, home.templates / record.parent.name
        if place.exists():
            continue
        beside = place.with_name(f"{place.name}.linked.new")
        shutil.rmtree(beside, ignore_errors=True)  # of a session that was killed
        try:
            image = json.loads(record.read_bytes())["image"]
            if image and not (home.images / image.removeprefix("sha256:")).is_dir():
                continue  # of an image that is only there
            shutil.copytree(made, beside, copy_function=os.link)
            beside.rename(place)
        except FileNotFoundError:  # it was removed meanwhile
            shutil.rmtree(beside, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def templates_of_others() -> None:
    share_templates(home_of_tests())


def home_of_tests() -> Home:
    """Of this process: where tests are spread over several, each has its own node and its own emulated host."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    path = os.environ.get("PERDURE_TEST_HOME") or str(ROOT / "build" / "test-home")
    return Home(Path(f"{path}-{worker}" if worker else path), Home.find().cache).make()


@pytest.fixture(scope="session")
def home() -> Iterator[Home]:
    """A home whose node runs, with the image ``perdure-test`` (a minimal Debian with Python: agents' default)."""
    from perdure.host import below

    for program in ("mksquashfs", "mmdebstrap"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    home = home_of_tests()
    lock = os.open(home.root / "tests.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # two sessions would remove each other's sandboxes
    former = {name: os.environ.get(name) for name in ("PERDURE_HOME", "PERDURE_CACHE")}
    os.environ |= {"PERDURE_HOME": str(home.root), "PERDURE_CACHE": str(home.cache)}
    try:
        perdure = Path(sys.executable).with_name("perdure")
        subprocess.run([perdure, "down"], check=True, timeout=2 * DEADLINE_S)  # of a session that was killed
        below.stop(home)
        looks = Path(__file__).with_name("look.c")
        subprocess.run(["gcc", "-std=gnu11", "-Os", "-s", "-static", "-o", home.root / "look", looks], check=True)
        with (home.root.parent / "test-images.lock").open("w") as making:
            fcntl.flock(making, fcntl.LOCK_EX)  # who comes second links what the first one makes
            share_images(home)
            ensure_running(home)
            client = NodeClient(home)
            for info in client.list():
                client.remove(info.id, force=True)  # of a session that was killed
            if IMAGE not in {image.name.partition(":")[0] for image in client.images()}:
                client.tag_image(ensure_default(), IMAGE)
                client.remove(client.start(client.create(SandboxSpec(image=IMAGE)).id).id, force=True)  # its template
        yield home
    finally:
        NodeClient(home).shutdown()
        below.stop(home)
        for name, value in former.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        os.close(lock)


@pytest.fixture
def client(home: Home) -> Iterator[NodeClient]:
    """A client; what the test made is removed after it, and nothing of it may be left."""
    ensure_running(home)
    client = NodeClient(home)
    yield client
    for info in client.list():
        with contextlib.suppress(NotFound):  # one of ``--rm`` that went in this moment
            client.remove(info.id, force=True)
    for network in client.networks.list():
        if network.name != "bridge":
            client.networks.remove(network.id)
    assert not list(home.sandboxes.iterdir())
    assert not list(home.run.glob("upload-*"))
    assert kept_below(home) == []


@pytest.fixture
def hasty_node(home: Home, client: NodeClient) -> Iterator[None]:
    """The node soon gives up a guest that is silent, and a store that is away: what a test would only wait for."""
    hasty.start(home)
    yield
    client.shutdown()
    ensure_running(home)


def kept_below(home: Home) -> list[str]:
    """What is left below the line: keepers, and machine folders."""
    folders, _, processes = _seen_below(home).partition("--\n")
    return folders.split() + [str(pid) for pid in belowline.machines(home, processes)]


def machines_below(home: Home) -> list[int]:
    """The pids of the Firecrackers that run a machine."""
    return belowline.machines(home, _seen_below(home).partition("--\n")[2])


def _seen_below(home: Home) -> str:
    said: list[str] = []
    status = below_run(home, [str(home.root / "look"), str(home.below_line_folder / "m")], said.append)
    assert status == 0, said
    return "".join(said)


def below_run(home: Home, argv: list[str], output: Callable[[str], object]) -> int:
    """Run a program below the line, as the machines' neighbour."""
    import asyncio

    from perdure.execution.machine.remote import Launcher
    from perdure.host import below

    async def run() -> int:
        address = below.status(home).address
        if address is None:
            return 0  # nothing was ever started
        return await Launcher(address).run(argv, output=lambda data: output(data.decode()))

    return asyncio.run(run())


@pytest.fixture
def kill_below(home: Home) -> Callable[[int], None]:
    """kill -9 for a process below the line."""

    def kill(pid: int) -> None:
        said: list[str] = []
        assert below_run(home, ["/bin/kill", "-9", str(pid)], said.append) == 0, said

    return kill


@pytest.fixture
def below(home: Home) -> Callable[[list[str]], str]:
    """What a program says that runs below the line."""

    def run(argv: list[str]) -> str:
        said: list[str] = []
        assert below_run(home, argv, said.append) == 0, said
        return "".join(said)

    return run


@pytest.fixture
def firecrackers(home: Home) -> Callable[[], list[int]]:
    """The pids of the Firecrackers that run a machine."""
    return lambda: machines_below(home)


@pytest.fixture
def fcrun(client: NodeClient) -> Fcrun:
    """The command, as a user runs it."""

    def run(*argv: str, stdin: str | None = None, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "perdure.cli.fcrun", *argv],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    return run


@pytest.fixture
def start(client: NodeClient) -> Callable[..., SandboxInfo]:
    """Create and start a sandbox of the test image."""

    def start(*command: str, **wishes: object) -> SandboxInfo:
        spec = SandboxSpec(image=IMAGE, command=list(command), **wishes)  # type: ignore[arg-type]
        return client.start(client.create(spec).id)

    return start


class Conversation:
    """Lines to and from an interactive process, over one session that stays open."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lines: queue.Queue[str | PerdureError | None] = queue.Queue()
        self.states: list[str] = []
        session.on_state = self.states.append
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        rest = b""
        try:
            for _, data in self._session.outputs():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._lines.put(line.decode().rstrip("\r"))
        except PerdureError as error:
            self._lines.put(error)
        self._lines.put(None)

    def say(self, line: str) -> None:
        self._session.send_stdin(line.encode() + b"\n")

    def hear(self, timeout_s: float = DEADLINE_S) -> str:
        """The next line. Raises the session's error, EOFError at its end, TimeoutError."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError("no line came") from None
        if isinstance(line, PerdureError):
            raise line
        if line is None:
            raise EOFError
        return line

    def ask(self, line: str) -> str:
        self.say(line)
        return self.hear()

    def hear_until(self, wanted: str) -> str:
        """The next line that has ``wanted`` in it."""
        while wanted not in (line := self.hear()):
            pass
        return line

    def close(self) -> None:
        self._session.close()
        self._thread.join(10)


@pytest.fixture
def converse(client: NodeClient) -> Iterator[Callable[[Session], Conversation]]:
    made: list[Conversation] = []

    def converse(session: Session) -> Conversation:
        made.append(Conversation(session))
        return made[-1]

    yield converse
    for conversation in made:
        conversation.close()


# Holds memory, an open file and a pipe with unread bytes; each line advances it and is answered with all of that.
KEEPER = r"""
import os, sys, time, zlib
memory = bytearray(os.urandom(2 << 20))
reading, writing = os.pipe()
os.write(writing, b"unread")
notes = open("/notes", "a+")
count = 0
print("up", flush=True)
for line in sys.stdin:
    count += 1
    notes.write(line); notes.flush()
    notes.seek(0)
    said = zlib.crc32(memory)
    memory[count * 4096 % len(memory)] ^= 1 + count % 255
    now = zlib.crc32(memory)
    print(repr({
        "pid": os.getpid(), "count": count, "notes": notes.read(), "memory": said, "next": now,
        "pipe": os.read(reading, 3).decode() if count in (2, 3) else "", "time": time.time(),
        "random": os.urandom(16).hex(), "word": line.strip(),
    }), flush=True)
"""


@pytest.fixture
def keeper(
    start: Callable[..., SandboxInfo], client: NodeClient, converse: Callable[[Session], Conversation]
) -> tuple[str, Conversation]:
    """A running KEEPER and a conversation with it."""
    ref = start(*PYTHON, KEEPER, stdin=True).id
    talk = converse(client.attach(ref, logs=True))
    assert talk.hear() == "up"
    return ref, talk


@pytest.fixture
def ask() -> Callable[[Conversation, str], dict[str, Any]]:
    """Say a word to a KEEPER; what it answers."""

    def ask(talk: Conversation, word: str) -> dict[str, Any]:
        answer: dict[str, Any] = ast.literal_eval(talk.ask(word))
        assert answer["word"] == word
        return answer

    return ask


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait for a condition of the outside world that nothing announces; fails at a deadline."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, "it did not come to be"
            threading.Event().wait(0.05)

    return wait
