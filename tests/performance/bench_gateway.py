"""What the gateway adds to a model's answer: until its first byte, and to many streams at once.

    python bench_gateway.py [serve HOME URL RUNS | provide]     no word: prints the figures; the others: its processes

Three processes, as in life: the asker (this one, as a node asks), the server (a real engine, gateway and HTTP API on a
SQLite file, with runs whose machines only wait) and a provider that streams. The asker asks the provider directly, too,
in turn with the other way; both over connections that are kept. A turn is durable before its provider is asked, so one
synced transaction is in what is added.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from report import HEAD, Report

from perdure.host.paths import Home
from perdure.model import RunState
from perdure.runs.driver import Settings
from perdure.testing.house import House
from perdure.testing.machines import CHAT, Ask
from perdure.testing.served import Served

ROUNDS = 300
STREAMS = 500
PIECES, PAUSE_S = 20, 0.25  # of each of them
END = b"data: [DONE]\n\n"
READ_S = 120.0
AGAIN_S = 0.05


class Asker:
    """Asks for streams: ``direct`` of the provider, or through the gateway as the node of one of its runs."""

    def __init__(self, provider: str, socket: Path, runs: list[tuple[str, str]]) -> None:
        self._provider = provider
        self._runs = runs
        self._asked = 0
        timeout = aiohttp.ClientTimeout(total=None, sock_read=READ_S)
        self._direct = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
        self._node = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket), limit=0), timeout=timeout)

    async def close(self) -> None:
        await self._direct.close()
        await self._node.close()

    async def direct(self, pieces: int) -> tuple[float, float]:
        """Seconds to the first byte and to the last. Raises RuntimeError where the answer is not whole."""
        return await self._stream(self._direct, f"{self._provider}/chat/completions", {}, pieces)

    async def through(self, pieces: int) -> tuple[float, float]:
        """The same through the gateway: a new call of one run after the other."""
        run_id, token = self._runs[self._asked % len(self._runs)]
        headers = {
            "Perdure-Run": run_id,
            "Perdure-Epoch": "1",
            "Perdure-Token": token,
            "Perdure-Lane": "bench",
            "Perdure-Ordinal": str(self._asked // len(self._runs)),
            "Perdure-Method": "POST",
            "Perdure-Path": CHAT,
            "Perdure-Offset": "0",
            "Perdure-Headers": "{}",
        }
        self._asked += 1
        return await self._stream(self._node, "http://localhost/v1/calls", headers, pieces)

    async def _stream(
        self, session: aiohttp.ClientSession, url: str, headers: dict[str, str], pieces: int
    ) -> tuple[float, float]:
        begun, first_s, body = time.perf_counter(), 0.0, b""
        while not body:
            try:
                async with session.post(url, data=_body(pieces), headers=headers) as answer:
                    async for piece in answer.content.iter_any():
                        first_s = first_s or time.perf_counter() - begun
                        body += piece
            except aiohttp.ClientOSError:  # more connections at once than a socket takes: again, as a node does
                await asyncio.sleep(AGAIN_S)
        if answer.status != 200 or not body.endswith(END):
            raise RuntimeError(f"status {answer.status}: {body[-200:]!r}")
        return first_s, time.perf_counter() - begun


def _body(pieces: int) -> bytes:
    asked = {"messages": [{"role": "user", "content": "Say it."}], "stream": True, "max_tokens": pieces}
    return json.dumps(asked).encode()


def add(report: Report) -> None:
    with tempfile.TemporaryDirectory() as name, _process("provide") as provider:
        home = Home(Path(name) / "home", Path(name) / "cache").make()
        with _process("serve", str(home.root), provider["url"], str(STREAMS)) as served:
            asyncio.run(_measure(report, provider["url"], home.socket("perdured"), served["runs"]))


@contextmanager
def _process(*words: str) -> Iterator[dict[str, Any]]:
    """One of the other processes, and the line that it prints when it is ready. It ends with its standard input."""
    command = [sys.executable, __file__, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.stdin.close()


async def _measure(report: Report, provider: str, socket: Path, runs: list[tuple[str, str]]) -> None:
    asker = Asker(provider, socket, runs)
    try:
        await asker.direct(1)
        await asker.through(1)
        pairs = [((await asker.direct(1))[0], (await asker.through(1))[0]) for _ in range(ROUNDS)]
        direct, through = (statistics.median(found) * 1000 for found in zip(*pairs, strict=True))
        report.add("provider asked directly: to the first byte, p50", direct, "ms")
        report.add("gateway: added to the first byte, p50", through - direct, "ms", goal="value <= 2")
        for way, ask, goal in (
            ("provider asked directly", asker.direct, ""),
            ("gateway", asker.through, f"value >= {STREAMS}"),
        ):
            found = await asyncio.gather(*(ask(PIECES) for _ in range(STREAMS)), return_exceptions=True)
            whole = [times for times in found if not isinstance(times, BaseException)]
            for problem in {str(problem) for problem in found if isinstance(problem, BaseException)}:
                print(f"  {way}: {problem}", file=sys.stderr)
            many = f"{way}: {STREAMS} streams at once"
            report.add(f"{many}, that ended whole", len(whole), "", goal=goal)
            for what, taken in (("first", [one[0] for one in whole]), ("last", [one[1] for one in whole])):
                over = f"provider asked directly: {STREAMS} streams at once, {what} byte" if goal else ""
                report.add(f"{many}, {what} byte", statistics.median(taken), "s", over=over)
    finally:
        await asker.close()


def waiting() -> Any:
    yield Ask("wait", {"kind": "signal", "name": "go"})


async def _serve(root: Path, provider: str, count: int) -> None:
    """A server whose runs wait warm: their ids, and the tokens of their machines, on standard output."""
    house = House(root, provider)
    house.settings = Settings(idle_grace_s=3600.0, think_grace_s=3600.0)
    await house.up()
    served = Served(house, Home(root, root))
    await served.up()
    runs = [await house.start(waiting) for _ in range(count)]
    for run_id in runs:
        await house.reaches(run_id, RunState.WAITING)
    print(json.dumps({"runs": [(run_id, house.engine.endpoint(run_id, 1).token) for run_id in runs]}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await served.runner.cleanup()
    await house.down()


async def _provide() -> None:
    """A provider on a loopback port that is no more than its bytes: so many pieces as were asked for."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                asked = json.loads(await reader.readexactly(int(length.split(b":")[1])))
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                for number in range(asked["max_tokens"]):
                    if number:
                        await asyncio.sleep(PAUSE_S)
                    writer.write(_chunk({"content": f"{number} "}, None))
                end = _chunk({}, "stop") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(END), END)
                writer.write(end)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=STREAMS)
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"url": f"http://127.0.0.1:{port}/v1"}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


def _chunk(delta: dict[str, str], reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    data = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", root, provider, count]:
            asyncio.run(_serve(Path(root), provider, int(count)))
        case ["provide"]:
            asyncio.run(_provide())
        case _:
            print(HEAD)
            add(Report())
