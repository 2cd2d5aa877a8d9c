"""The real guestd, under ASan and UBSan, on this machine: it dials a Unix socket instead of vsock.

``guest`` runs one; ``guest.cut()`` ends its connection (as a snapshot does), it dials again by itself. ``shell`` runs
``perdure-guest`` beside it, and answers what that asks. A sanitizer's report, or an end that no test asked for, fails
the test.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from perdure.execution.guest.session import GuestCall, GuestSession

ROOT = Path(__file__).parents[3]
DEADLINE_S = 20.0


class Guest:
    """One guestd, and the session that the test drives it with; ``replace_session`` is what a restarted node does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: asyncio.Queue[GuestCall] = asyncio.Queue()
        self.session = GuestSession(self._on_call)
        self.answer: Callable[[GuestCall], Awaitable[None]] | None = None
        self.connections = 0
        self.cut_after: int | None = None  # bytes from the guest after which the connection is cut, once
        self.held: list[bytes] | None = None
        self.http_port = 0
        self.link: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None
        self._process: asyncio.subprocess.Process | None = None
        self.ends_by_itself = False

    async def _on_call(self, call: GuestCall) -> None:
        self.calls.put_nowait(call)
        if self.answer is not None:
            await self.answer(call)
        else:
            await asyncio.Event().wait()  # the test answers, from outside; a cut ends this

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self, binary: Path, *options: str) -> None:
        path = self.folder / "guest.sock"
        self._server = await asyncio.start_unix_server(self._serve, path=str(path))
        self._process = await asyncio.create_subprocess_exec(
            binary,
            "--test-socket",
            str(path),
            *options,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
        )
        assert self._process.stdout
        line = await asyncio.wait_for(self._process.stdout.readline(), DEADLINE_S)
        self.http_port = int(line.split()[1])
        await self.session.ready(DEADLINE_S)
        await self.session.configure(hostname="test")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.link = asyncio.current_task()
        self.connections += 1
        self._writer = writer
        session = self.session
        session.connection_up(lambda data: self._write(writer, data))
        try:
            while data := await reader.read(65536):
                if self.cut_after is not None:
                    data, self.cut_after = data[: self.cut_after], self.cut_after - len(data)
                    if self.cut_after <= 0:
                        self.cut_after = None
                        session.data_received(data)
                        break
                session.data_received(data)
        except ConnectionError:
            pass
        finally:
            if self._writer is writer:
                session.connection_down()
            writer.transport.abort()

    def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if self.held is None:
            writer.write(data)
        else:
            self.held.append(data)

    def hold(self) -> None:
        """What the host says, above all its WELCOME, is under way until ``let_go``."""
        self.held = []

    def let_go(self) -> None:
        assert self._writer is not None and self.held is not None
        held, self.held = self.held, None
        for data in held:
            self._writer.write(data)

    async def cut(self) -> None:
        """End the connection now and wait for the next greeting."""
        before = self.connections
        assert self._writer
        self._writer.transport.abort()
        self.session.connection_down()
        await self.session.ready(DEADLINE_S)
        assert self.connections > before

    async def replace_session(self) -> GuestSession:
        self.session = GuestSession(self._on_call)
        await self.cut()
        return self.session

    async def send_raw(self, data: bytes) -> None:
        assert self._writer
        self._writer.write(data)

    async def ended(self) -> tuple[int, str]:
        assert self._process and self._process.stderr
        errors = (await asyncio.wait_for(self._process.stderr.read(), DEADLINE_S)).decode()
        return await self._process.wait(), errors

    async def stop(self) -> None:
        if self._process:
            if not self.ends_by_itself and self._process.returncode is None:
                self._process.terminate()
            status, errors = await self.ended()
            assert "Sanitizer" not in errors and "runtime error" not in errors, errors
            assert status == 0, errors
        if self._server:
            self._server.close()


@pytest_asyncio.fixture
async def guest(guest_build: Path, tmp_path: Path) -> AsyncIterator[Guest]:
    guest = Guest(tmp_path)
    try:
        await guest.start(guest_build / "guestd-test")
        yield guest
    finally:
        await guest.stop()


def has_mounts() -> bool:
    """Whether mounts can be made here, in a namespace of one's own."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest_asyncio.fixture
async def mounting_guest(guest_build: Path, tmp_path: Path) -> AsyncIterator[Guest]:
    """One whose mounts are its own."""
    if not has_mounts():
        pytest.skip("no mount namespace can be made: that needs root")
    program = tmp_path / "guestd"
    program.write_text(f'#!/bin/sh\nexec unshare -m {shlex.quote(str(guest_build / "guestd-test"))} "$@"\n')
    program.chmod(0o755)
    guest = Guest(tmp_path)
    try:
        await guest.start(program)
        yield guest
    finally:
        await guest.stop()


Answer = Callable[[GuestCall, Any], Any]


def _as_from_a_terminal() -> None:
    """Tests that run in the background ignore these, and what they start would, too."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


class Shell:
    """A shell in the guest, and what it asks: (lane, ordinal, call, body) each."""

    def __init__(self, guest: Guest, folder: Path) -> None:
        self.guest, self.folder = guest, folder
        self.asked: list[tuple[str, int, str, Any]] = []
        self.says: Answer = lambda call, body: {}
        self.status = 200
        guest.answer = self.answer

    async def answer(self, call: GuestCall) -> None:
        body = json.loads(call.body)
        self.asked.append((call.lane, call.ordinal, call.path.removeprefix("/perdure/v1/"), body))
        said = self.says(call, body)
        if isinstance(said, Awaitable):
            said = await said
        await call.respond(self.status, {"content-type": "application/json"})
        await call.write(json.dumps(said).encode())
        await call.end()

    async def start(self, *words: str, **environ: str) -> asyncio.subprocess.Process:
        door = {"PERDURE_DOOR": f"127.0.0.1:{self.guest.http_port}"}
        door["ASAN_OPTIONS"] = "detect_leaks=0"  # it gives its memory back by ending
        return await asyncio.create_subprocess_exec(
            self.folder / "perdure-guest", *words, cwd=self.folder, env={**os.environ, **door, **environ},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            preexec_fn=_as_from_a_terminal,
        )  # fmt: skip

    async def __call__(self, *words: str, status: int = 0, given: bytes = b"", **environ: str) -> tuple[bytes, str]:
        """What it wrote to stdout and stderr; it must end with ``status``, and without a sanitizer's report."""
        process = await self.start(*words, **environ)
        said, told = await asyncio.wait_for(process.communicate(given), DEADLINE_S)
        assert process.returncode == status, (words, process.returncode, said, told)
        assert b"Sanitizer" not in told and b"runtime error" not in told
        return said, told.decode()


@pytest_asyncio.fixture
async def shell(guest: Guest, guest_build: Path, tmp_path: Path) -> AsyncIterator[Shell]:
    (tmp_path / "perdure-guest").symlink_to(guest_build / "guestd-test")
    yield Shell(guest, tmp_path)
