"""docs/any-language.md: what it shows is run as it stands, against the real guestd, engine and log."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import PerdureError
from perdure.execution.guest.session import GuestCall, GuestSession
from perdure.model import Call, RunState
from perdure.runs.policy import NEVER_S, Policy
from perdure.testing.house import House
from perdure.testing.house_fixtures import house, provider
from perdure.testing.machines import Ask

__all__ = ["house", "provider"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "any-language.md").read_text()
DEADLINE_S = 60.0
PROGRAMS = {
    "sh": ["sh", "{}"],
    "bash": ["sh", "{}"],
    "python": [sys.executable, "{}"],
    "javascript": ["node", "{}"],
    "go": ["go", "run", "{}"],
}
NAMES = {"javascript": "program.mjs", "go": "program.go"}


def shown(language: str, number: int = 0) -> str:
    """The page's block in this language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)
    assert len(found) == (2 if language == "sh" else 1), language
    return str(found[number])


class Machine:
    """A run whose machine is this one: the real guestd, whose calls the engine answers."""

    def __init__(self, house: House, run_id: str, folder: Path, guestd: Path) -> None:
        self.house, self.run_id, self.folder, self._guestd = house, run_id, folder, guestd
        self.session = GuestSession(self._answer)

    async def open(self) -> None:
        path = self.folder / "guest.sock"
        self._server = await asyncio.start_unix_server(self._serve, path=str(path))
        self._process = await asyncio.create_subprocess_exec(
            self._guestd, "--test-socket", str(path), stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._port = int((await self._process.stdout.readline()).split()[1])
        await self.session.ready(DEADLINE_S)
        tools = self.folder / "bin"
        tools.mkdir()
        (tools / "perdure-guest").symlink_to(self._guestd)

    async def close(self) -> None:
        self._process.terminate()
        assert await self._process.wait() == 0
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.session.connection_up(writer.write)
        while data := await reader.read(65536):
            self.session.data_received(data)
        self.session.connection_down()
        writer.close()

    async def _answer(self, asked: GuestCall) -> None:
        record = self.house.engine._runs[self.run_id].record
        call = Call(
            self.run_id, record.epoch, asked.lane, asked.ordinal, asked.method, asked.path, {}, asked.body, asked.offset
        )
        try:
            answer = await self.house.engine.answer(call, self.house.engine.endpoint(self.run_id, record.epoch).token)
        except PerdureError as error:
            await asked.respond(error.http_status, {"content-type": "application/json"})
            await asked.write(b'{"error": {"message": "%s"}}' % error.message.encode())
        else:
            await asked.respond(answer.status, dict(answer.headers))
            async for piece in answer.body:
                await asked.write(piece)
        await asked.end()

    async def run(self, language: str, number: int = 0, text: str = "") -> str:
        """What the page's program in this language wrote, or what ``text`` did."""
        program = self.folder / NAMES.get(language, "program")
        program.write_text(text or shown(language, number))
        door = f"127.0.0.1:{self._port}"
        environ = {
            **os.environ,
            "PERDURE_URL": f"http://{door}",
            "PERDURE_DOOR": door,
            "OPENAI_BASE_URL": f"http://{door}/v1",
            "OPENAI_API_KEY": "a-machine-has-one",
            "ASAN_OPTIONS": "detect_leaks=0",
        }
        environ["PATH"] += f":{self.folder / 'bin'}"
        process = await asyncio.create_subprocess_exec(
            *[word.format(program) for word in PROGRAMS[language]], cwd=self.folder, env=environ,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
        assert process.returncode == 0
        return said.decode()

    async def waits_for(self, kind: str) -> None:
        run = self.house.engine._runs[self.run_id]
        assert await run.until(lambda: any(wait.kind == kind for wait in run.record.waits.open), DEADLINE_S)

    async def child(self) -> str:
        """The run that it waits for; its machine is one that ends at once, with some output."""
        await self.waits_for("child")
        found = self.house.engine._runs[self.run_id].record.waits.open
        return next(wait.child for wait in found if wait.child)

    async def emitted(self) -> list[Any]:
        return [[e.payload["name"], e.payload["value"]] for e in await self.house.entries(self.run_id, "emit")]


def ends() -> Any:
    """The machine of a child: its program ends, and has said something."""
    yield Ask("emit", {"name": "began", "value": None}, lane="child")
    return 0


@pytest.fixture
async def machine(house: House, guest_build: Path, tmp_path: Path) -> AsyncIterator[Machine]:
    def stays() -> Any:
        yield Ask("wait", {"kind": "signal", "name": "never"}, lane="stays")

    run_id = await house.start(stays, policy=Policy(idle_grace_s=NEVER_S))
    await house.reaches(run_id, RunState.WAITING)  # in the epoch that its calls are of
    house.machines.program = ends
    made = Machine(house, run_id, tmp_path, guest_build / "guestd-test")
    await made.open()
    yield made
    await made.close()


@pytest.mark.parametrize("approved", [True, False])
async def test_a_shell_script(machine: Machine, approved: bool) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    running = asyncio.create_task(machine.run("sh"))
    await machine.waits_for("approval")
    wait = machine.house.engine._runs[machine.run_id].record.waits.askable[0]
    said = "answer to In one sentence: what do owls hunt?\n"
    assert (wait.name, wait.show) == ("Publish the report?", said)
    await machine.house.engine.approve(machine.run_id, wait.id, approved=approved, comment="fine")
    assert await running == (said if approved else "not published\n")
    assert await machine.emitted() == ([["published", "fine"]] if approved else [])
    results = [entry.payload["result"] for entry in await machine.house.entries(machine.run_id, "step.result")]
    assert results == ([{"exit_status": 0, "output": said}] if approved else [])


def test_the_first_script_is_the_example() -> None:
    example = (ROOT / "examples" / "agent.sh").read_text()
    assert shown("sh") == "# examples/agent.sh\n" + example[example.index("set -eu") :]


@pytest.mark.parametrize(("came", "said"), [("delivered", "3 snowy owls: all well\n"), ("called-off", "called off\n")])
async def test_a_shell_script_with_a_form_a_child_and_a_set(machine: Machine, came: str, said: str) -> None:
    engine = machine.house.engine
    running = asyncio.create_task(machine.run("sh", 1))
    await machine.waits_for("approval")
    wait = engine._runs[machine.run_id].record.waits.askable[0]
    assert [(field.name, field.label, field.choices) for field in wait.form] == [
        ("count", "How many?", []),
        ("kind", "", ["snowy", "tawny"]),
    ]
    await engine.approve(machine.run_id, wait.id, approved=True, values={"count": 3, "kind": "snowy"})
    kid = await machine.child()
    await machine.waits_for("any")
    info = await machine.house.ends(kid)
    assert (info.parent, info.agent) == (machine.run_id, "sh /work/search.sh snowy")
    assert machine.house.machines.plans[-1].memory_mib == 256
    assert await machine.emitted() == [["found", "output"]]
    await engine.signal(machine.run_id, came, "all well")
    assert await running == said


async def test_a_wait_that_nobody_waits_for_any_more_is_over(machine: Machine) -> None:
    said = await machine.run("sh", text="timeout 1 perdure-guest wait signal late; echo $?")
    assert said == "124\n"  # timeout(1)'s
    ended = await machine.house.entries(machine.run_id, "wait.completed")
    assert [(e.key, e.payload["outcome"]) for e in ended] == [("sh:signal:late/0", "withdrawn")]


async def test_curl(machine: Machine) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    await machine.house.engine.signal(machine.run_id, "go", {"a": 1})
    assert '"value":{"a":1}' in await machine.run("bash")
    assert await machine.emitted() == [["began", {"owls": 12}]]


async def test_python(machine: Machine) -> None:
    assert await machine.run("python") == "counted 45\nfound output\n\n"
    assert [e.key for e in await machine.house.entries(machine.run_id, "step.result")] == ["steps/0"]


async def test_node(machine: Machine) -> None:
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    running = asyncio.create_task(machine.run("javascript"))
    await machine.waits_for("approval")
    await machine.house.engine.approve(machine.run_id, None, approved=True, by="ann", values={"count": 12})
    await machine.waits_for("any")
    await machine.house.engine.signal(machine.run_id, "stop", "now")
    assert await running == "12 approved by ann\nstopped: now\n"


async def test_go(machine: Machine) -> None:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    await machine.house.engine.signal(machine.run_id, "go", "now")
    assert await machine.run("go") == "now <nil>\n"
