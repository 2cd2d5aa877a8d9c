"""The gateway beside LiteLLM's proxy and the provider itself, in one run: first bytes, calls a second, many streams.

    python bench_gateway.py [serve HOME URL RUNS | provide]     no word: prints the figures; the others: its processes

Processes, as in life: the asker (this one, as a node asks), the server (a real engine, gateway and HTTP API on a
SQLite file, with runs whose machines only wait), LiteLLM (``litellm_proxy``) and a provider that is no more than its
bytes. All ways are asked in turn, over connections that are kept, so that what else the machine does hits them alike.

They do not do the same. Ours keeps each turn, synced: before the provider is asked, and before the program hears the
end. LiteLLM keeps nothing, and would with a database, later, what a call cost. Both have one process; what LiteLLM does
with one for each processor is a figure of its own. ``gateway_memory`` is the part's second half.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import litellm_proxy
from asking import Answered, Connections
from report import HEAD, Report

from perdure.host.paths import Home
from perdure.model import RunState
from perdure.runs.driver import Settings
from perdure.testing.house import House
from perdure.testing.machines import CHAT, Ask
from perdure.testing.served import Served

ROUNDS = 300
IN_A_ROW = 30
AT_ONCE = 32
SLICES, SLICE_S = 8, 2.0  # of calls as fast as they are answered, each way in turn
STREAMS = 500
PIECES, PAUSE_S = 20, 0.25  # of each of them
MODEL = "tiny"
END = b"data: [DONE]\n\n"
DIRECT, OURS, LITELLM, MANY = "provider asked directly", "gateway", "LiteLLM", "LiteLLM, a worker for each processor"

Way = Callable[[bytes], Awaitable[Answered]]


class Asker:
    """Asks the same of several: ``ways``, by the name that their figures have."""

    def __init__(self, provider: str, served: Path, runs: Sequence[tuple[str, str]]) -> None:
        self._runs = runs
        self._asked = 0
        url = urlsplit(provider)
        self._path = url.path + "/chat/completions"
        self._node = Connections.unix(str(served))
        self._all = [self._node]
        self.ways: dict[str, Way] = {OURS: self._through}
        self.to(DIRECT, url.port or 80)

    def to(self, name: str, port: int, key: str = "") -> None:
        connections = Connections.tcp("127.0.0.1", port)
        self._all.append(connections)
        head = f"POST {self._path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {key}\r\n" if key else ""
        self.ways[name] = lambda body: connections.ask(_request(head, body))

    async def _through(self, body: bytes) -> Answered:
        """The next call of one run after the other."""
        ordinal, nth = divmod(self._asked, len(self._runs))
        run_id, token = self._runs[nth]
        self._asked += 1
        head = f"POST /v1/calls HTTP/1.1\r\nHost: perdured\r\nPerdure-Run: {run_id}\r\nPerdure-Epoch: 1\r\n"
        head += (
            f"Perdure-Token: {token}\r\nPerdure-Lane: bench\r\nPerdure-Ordinal: {ordinal}\r\nPerdure-Method: POST\r\n"
        )
        head += (
            f'Perdure-Path: {CHAT}\r\nPerdure-Offset: 0\r\nPerdure-Headers: {{"content-type":"application/json"}}\r\n'
        )
        return await self._node.ask(_request(head, body))

    async def ask(self, way: str, body: bytes) -> Answered:
        """Raises RuntimeError where the answer is not whole."""
        answer = await self.ways[way](body)
        is_stream = b'"stream"' in body
        if answer.status != 200 or (END if is_stream else b'"finish_reason"') not in answer.body:
            raise RuntimeError(f"{way}: status {answer.status}: {answer.body[-200:]!r}")
        return answer

    def close(self) -> None:
        for connections in self._all:
            connections.close()


def _request(head: str, body: bytes) -> bytes:
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def question(pieces: int = 0) -> bytes:
    """pieces: of a stream; 0: a whole answer."""
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Say it."}]}
    return json.dumps(asked | ({"stream": True, "max_tokens": pieces} if pieces else {})).encode()


def add(report: Report) -> None:
    """LiteLLM is left out where ``build/litellm`` has none."""
    if not litellm_proxy.is_there():
        print("  LiteLLM is not measured: make build/litellm.done installs it for this", file=sys.stderr)
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory())
        provider = stack.enter_context(process("provide"))["url"]
        home = Home(Path(name) / "home", Path(name) / "cache").make()
        served = stack.enter_context(process("serve", str(home.root), provider, str(STREAMS)))
        others = {}
        if litellm_proxy.is_there():
            for way, workers in ((LITELLM, 1), (MANY, os.cpu_count() or 1)):
                others[way] = stack.enter_context(litellm_proxy.serving(provider, MODEL, workers))
        asyncio.run(_measure(report, provider, home.socket("perdured"), served["runs"], others))


@contextmanager
def process(*words: str) -> Iterator[dict[str, Any]]:
    """One of the other processes, and the line that it prints when it is ready. It ends with its standard input."""
    command = [sys.executable, __file__, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdin is not None and started.stdout is not None
        yield json.loads(started.stdout.readline())
        started.stdin.close()


async def _measure(
    report: Report, provider: str, socket: Path, runs: list[tuple[str, str]], others: dict[str, tuple[int, str]]
) -> None:
    asker = Asker(provider, socket, runs)
    for way, place in others.items():
        asker.to(way, *place)
    one = [way for way in (DIRECT, LITELLM, OURS) if way in asker.ways]
    try:
        for body in (question(1), question()):
            for way in asker.ways:
                await _rate(asker, way, body, 1.0)  # what is made at the first calls is made
        await _first_bytes(report, asker, one)
        await _rates(report, asker, [*one, *(way for way in (MANY,) if way in asker.ways)])
        for way in one:
            await _streams(report, asker, way)
    finally:
        asker.close()


async def _first_bytes(report: Report, asker: Asker, ways: Sequence[str]) -> None:
    """Of streams, one after the other; each way some in a row: what another one's processes push out of the processors'
    caches is no time of its own."""
    body, found = question(1), defaultdict[str, list[float]](list)
    for _ in range(ROUNDS // IN_A_ROW):
        for way in ways:
            found[way] += [(await asker.ask(way, body)).first_s * 1000 for _ in range(IN_A_ROW)]
    for at, share in (("p50", 0.5), ("p99", 0.99)):
        base = _quantile(found[DIRECT], share)
        report.add(f"{DIRECT}: to the first byte, {at}", base, "ms")
        added = f"added to the first byte, {at}"
        if LITELLM in found:
            report.add(f"{LITELLM}: {added}", _quantile(found[LITELLM], share) - base, "ms")
        ours, is_goal = _quantile(found[OURS], share) - base, at == "p50"
        report.add(f"{OURS}: {added}", ours, "ms", goal="value <= 2" if is_goal else "")
        if LITELLM in found:
            goal = "ratio <= 0.3" if is_goal else ""
            report.add(f"{OURS}: {added}, beside LiteLLM", ours, "ms", over=f"{LITELLM}: {added}", goal=goal)


async def _rates(report: Report, asker: Asker, ways: Sequence[str]) -> None:
    """Of whole small answers."""
    body, found = question(), defaultdict[str, list[float]](list)
    for _ in range(SLICES):
        for way in ways:
            found[way].append(await _rate(asker, way, body, SLICE_S))
    what = f"calls a second, {AT_ONCE} at once"
    for way in sorted(ways, key=lambda way: way == OURS):
        over, goal = (f"{LITELLM}: {what}", "ratio >= 3") if way == OURS and LITELLM in found else ("", "")
        report.add(f"{way}: {what}", statistics.median(found[way]), "1/s", over=over, goal=goal)


async def _rate(asker: Asker, way: str, body: bytes, seconds: float) -> float:
    """Answers a second."""
    begun = time.perf_counter()
    answered = 0

    async def ask() -> None:
        nonlocal answered
        while time.perf_counter() - begun < seconds:
            await asker.ask(way, body)
            answered += 1

    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    return answered / (time.perf_counter() - begun)


async def _streams(report: Report, asker: Asker, way: str) -> None:
    """Many at once, each of which takes some seconds."""
    body = question(PIECES)
    found = await asyncio.gather(*(asker.ask(way, body) for _ in range(STREAMS)), return_exceptions=True)
    whole = [one for one in found if not isinstance(one, BaseException)]
    for problem in {repr(problem) for problem in found if isinstance(problem, BaseException)}:
        print(f"  {way}: {problem}", file=sys.stderr)
    many = f"{STREAMS} streams at once"
    report.add(f"{way}: {many}, that ended whole", len(whole), "", goal=f"value >= {STREAMS}" if way == OURS else "")
    for what, taken in (("first", [one.first_s for one in whole]), ("last", [one.last_s for one in whole])):
        if taken:
            over = "" if way == DIRECT else f"{DIRECT}: {many}, {what} byte"
            report.add(f"{way}: {many}, {what} byte", statistics.median(taken), "s", over=over)


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


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
    print(
        json.dumps({"runs": [(run_id, house.engine.endpoint(run_id, 1).token) for run_id in runs], "pid": os.getpid()}),
        flush=True,
    )
    await asyncio.to_thread(sys.stdin.read)
    await served.runner.cleanup()
    await house.down()


async def _provide() -> None:
    """A provider on a loopback port that is no more than its bytes: in so many pieces as were asked for, or whole."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if not head.startswith(b"POST"):  # LiteLLM looks for a list of models
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    continue
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                asked = json.loads(await reader.readexactly(int(length.split(b":")[1])))
                if not asked.get("stream"):
                    writer.write(WHOLE)
                    continue
                writer.write(STREAM_HEAD)
                for number in range(asked["max_tokens"]):
                    if number:
                        await asyncio.sleep(PAUSE_S)
                    writer.write(_chunk({"content": f"{number} "}, None))
                writer.write(_chunk({}, "stop") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(END), END))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=STREAMS)
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"url": f"http://127.0.0.1:{port}/v1"}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


FACTS = {"id": "chatcmpl-1", "created": 1_790_000_000, "model": MODEL}
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _whole() -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "It is said."}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    body = json.dumps(FACTS | {"object": "chat.completion", "choices": [choice], "usage": usage}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


WHOLE = _whole()


def _chunk(delta: dict[str, str], reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    data = b"data: " + json.dumps(FACTS | {"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"
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
