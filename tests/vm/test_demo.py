"""The demo as a person runs it, and leaves it: Ctrl-C at any moment ends everything that it started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.cli.perdure import _daemons
from perdure.cli.perdure._image import ensure_default
from perdure.client.node import NodeClient
from perdure.client.server import ServerClient
from perdure.host import below
from perdure.host.paths import Home
from perdure.runs.states import TERMINAL

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]
DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"
EXAMPLE = f"{DEMO.parents[1] / 'examples' / 'counter.py'}:counter"
LEFT_S = 120.0


@pytest.fixture
def own(home: Home, client: NodeClient, tmp_path: Path) -> Iterator[Home]:
    """A home of the demo's own, with the images and templates that are built already."""
    ensure_default()
    made = Home(tmp_path / "home", home.cache).make()
    for name in ("images", "templates"):
        shutil.copytree(home.root / name, made.root / name, copy_function=os.link, dirs_exist_ok=True)
    yield made
    _daemons.stop_all(made)
    below.stop(made)
    assert processes_of(made) == []


def processes_of(home: Home) -> list[str]:
    """Processes whose command line or environment names the home."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
            if os.fsencode(home.root) in words + (path / "environ").read_bytes() and int(path.name) != os.getpid():
                found.append(words.replace(b"\0", b" ").decode(errors="replace"))
        except (OSError, ValueError):
            continue
    return found


class Demo:
    """The demo in a process group of its own, read line by line."""

    def __init__(self, home: Home) -> None:
        environ = {**os.environ, "PERDURE_HOME": str(home.root), "PERDURE_CACHE": str(home.cache)}
        environ |= {"OPENAI_API_KEY": "sk-of-somebody", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}  # never asked
        self.process = subprocess.Popen(
            [sys.executable, str(DEMO)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.lines: list[str] = []

    def until(self, words: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if words in line:
                return
        raise AssertionError(f"the demo ended without {words!r}:\n{''.join(self.lines)}")

    def rest(self) -> str:
        """What it still says until its end, which must come."""
        assert self.process.stdout is not None
        over = threading.Timer(LEFT_S, lambda: os.killpg(self.process.pid, signal.SIGKILL))
        over.start()
        try:
            with self.process.stdout:
                return self.process.stdout.read()
        finally:
            over.cancel()
            self.process.wait()


@pytest.mark.parametrize("moment", ["perdure up", "starting", "wait.started", "kill -9"])
def test_ctrl_c_leaves_nothing(own: Home, moment: str) -> None:
    demo = Demo(own)
    demo.until(moment)
    os.killpg(demo.process.pid, signal.SIGINT)
    said = demo.rest()
    assert demo.process.returncode == 1, said
    assert "interrupted" in said and "Traceback" not in said
    assert processes_of(own) == []
    assert not list(own.sandboxes.iterdir())
    assert not own.below_line_folder.exists()


def test_it_does_not_touch_a_server_that_runs_already(own: Home) -> None:
    pid = int(_daemons.start_server(own)["pid"])
    demo = Demo(own)
    said = demo.rest()
    assert demo.process.returncode == 1
    assert f"a server (pid {pid}) already serves {own.root}" in said
    os.kill(pid, 0)


def test_to_its_end(own: Home) -> None:
    demo = Demo(own)
    said = demo.rest()
    assert demo.process.returncode == 0, said
    claims = said.partition("\nClaims\n")[2].splitlines()
    assert len(claims) == 9 and all(line.startswith("  holds  ") for line in claims), said
    assert processes_of(own) == []
    # what it left is another's: a demo that follows counts none of it
    assert not list(own.sandboxes.iterdir())


def test_it_does_not_go_on_beside_unfinished_runs(own: Home) -> None:
    environ = {**os.environ, "PERDURE_HOME": str(own.root), "PERDURE_CACHE": str(own.cache)}
    environ |= {"PERDURE_PROVIDER": "offline"}
    perdure = str(Path(sys.executable).with_name("perdure"))
    subprocess.run([perdure, "up"], env=environ, check=True, capture_output=True)
    argv = [perdure, "run", str(EXAMPLE), "--input", '{"topic": "owls"}', "--detach"]
    run = subprocess.run(argv, env=environ, check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run([perdure, "down"], env=environ, check=True, capture_output=True)
    demo = Demo(own)
    said = demo.rest()
    assert demo.process.returncode == 1
    assert f"unfinished runs are in {own.root}: {run};" in said
    _daemons.start_server(own)
    server = ServerClient(own)
    assert server.get(run).state not in TERMINAL  # it was left alone
    server.cancel(run, reason="the test is over")
