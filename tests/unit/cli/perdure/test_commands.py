"""The command as a person meets it: a process, its exit status, its two outputs; the daemons are real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.cli import perdure
from perdure.client.server import ServerClient
from perdure.gateway.offline_process import OfflineProcess
from perdure.host.paths import Home

pytestmark = pytest.mark.timeout(120)
AGENT = "from perdure import Context, agent\n@agent(image='none')\ndef f(ctx: Context): return 1\n"


class Shell:
    """Runs ``perdure`` with a state folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = Home(folder / "home", folder / "cache")
        drop = ("OPENAI_", "PERDURE_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
        self.environ = {**kept, "PERDURE_HOME": str(self.home.root), "PERDURE_CACHE": str(self.home.cache)}

    def __call__(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "perdure.cli.perdure", *words],
            cwd=self.folder, env=self.environ, input=stdin, capture_output=True, text=True, timeout=100,
        )  # fmt: skip

    def refused(self, *words: str, status: int, stdin: str = "") -> str:
        """What it says on stderr when it refuses; nothing is on stdout, and no traceback."""
        done = self(*words, stdin=stdin)
        assert (done.returncode, done.stdout) == (status, ""), done
        assert done.stderr.startswith("perdure: ") and "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made("down")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell whose server is up."""
    made = Shell(tmp_path_factory.mktemp("served"))
    assert made("up").returncode == 0
    (made.folder / "x.py").write_text(AGENT)
    (made.folder / "wrong.py").write_text("@agent(memory=3)\ndef f(ctx): ...\n")
    yield made
    assert made("down").returncode == 0


def test_up_twice_down_twice(shell: Shell) -> None:
    up = shell("up", "--json")
    status = json.loads(up.stdout)
    assert up.returncode == 0 and status["home"] == str(shell.home.root)
    again = shell.refused("up", status=1)
    assert f"pid {status['pid']}" in again and "perdure down" in again
    assert ServerClient(shell.home).status()["pid"] == status["pid"]
    down = shell("down")
    assert down.returncode == 0 and "server" in down.stdout and "node" in down.stdout
    assert shell("down").stdout == "down: nothing was running\n"
    assert "perdure up" in shell.refused("status", status=1)


def test_up_after_the_server_was_killed(shell: Shell) -> None:
    first = json.loads(shell("up", "--json").stdout)
    os.kill(first["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 10
    second = shell("up", "--json")
    while second.returncode and time.monotonic() < deadline:  # the kernel may still be ending it
        second = shell("up", "--json")
    assert json.loads(second.stdout)["pid"] != first["pid"]


def test_down_ends_the_offline_model(shell: Shell) -> None:
    shell.home.make()
    process = OfflineProcess(shell.home)
    process._start()
    assert "offline model" in shell("down").stdout and process.find() is None


def test_up_names_wrong_settings(shell: Shell) -> None:
    shell.home.make()
    (shell.home.root / "settings.toml").write_text("provider = 'nobody'\n")
    said = shell.refused("up", status=1)
    assert "the server did not start" in said and "nobody" in said


def test_a_wrong_setting_of_the_node_and_a_home_that_cannot_be(shell: Shell) -> None:
    shell.home.root.mkdir()
    (shell.home.root / "settings.toml").write_text("[node]\nmemory = 5\n")
    said = shell.refused("up", status=1)
    assert "settings.toml: [node]: unknown setting 'memory'; known are " in said and "InvalidValue" not in said
    (shell.folder / "file").touch()
    shell.environ["PERDURE_HOME"] = str(shell.folder / "file" / "home")
    said = shell.refused("up", status=1)
    assert f"the folder {shell.folder}/file/home cannot be made: Not a directory" in said and "PERDURE_HOME" in said


def test_status_and_an_empty_list(served: Shell) -> None:
    assert str(served.home.root) in served("status").stdout
    assert served("runs").stdout.splitlines() == ["RUN  NAME  STATE  AGENT  CREATED  TURNS  WAITS FOR"]
    assert served("runs", "--json").stdout == ""


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["run"], 2, "nothing to run"),
        (["run", "no.py:f"], 2, "no.py cannot be read: No such file"),
        (["run", "x.py"], 2, "'x.py' does not name an agent"),
        (["run", "--", "ls"], 2, "--image IMAGE -- COMMAND"),
        (["run", "wrong.py:f"], 2, "@agent(memory=...) is unknown\n  known are image, memory_mib, vcpus, "),
        (["run", "x.py:g"], 2, "x.py has no function 'g'"),
        (["run", "x.py:f", "--input", "{topic: owls}"], 2, "--input is not JSON"),
        (["run", "x.py:f", "--input", "NaN"], 2, "NaN is not a JSON value"),
        (["run", "x.py:f", "--input", "@no.json"], 2, "no.json) cannot be read"),
        (["run", "x.py:f", "--input", "-"], 2, "--input (stdin) is not JSON"),
        (["run", "x.py:f", "-e", "NAME"], 2, "-e 'NAME' is not NAME=VALUE"),
        (["run", "x.py:f", "--memory=-5"], 2, "--memory -5 is no size"),
        (["run", "x.py:f", "--memory", "much"], 2, "--memory: 'much' is no size"),
        (["run", "x.py:f", "--cpus", "0"], 2, "--cpus: '0' is no number of CPUs"),
        (["run", "x.py:f", "--idle-grace", "soon"], 2, "--idle-grace: 'soon' is not a length of time"),
        (["run", "x.py:f", "--checkpoint", "0turns"], 2, "--checkpoint 0turns: that is no number of turns"),
        (["run", "--image", "i", "-v", "/etc:/etc", "--", "ls", "-l"], 2, "a run shares no folders with this machine"),
        (["run", "x.py:f", "--timeout", "soon"], 2, "--timeout"),
        (["run", "x.py:f", "--tag", "owls"], 2, "--tag 'owls' is not NAME=VALUE"),
        (["run", "x.py:f", "--key-ttl", "1h"], 2, "--key-ttl is of a key"),
        (["run", "x.py:f", "--key", ""], 2, "key has 0 characters"),
        (["run", "x.py:f", "--timeout", "0"], 2, "--timeout is 0"),
        (["run", "x.py:f", "--queue", ""], 1, "no such queue"),
        (["run", "x.py:f", "--durability", "replay", "--egress", "none"], 2, "--egress is of microVMs"),
        (["run", "x.py:f", "--durability", "replay", "--checkpoint", "turn"], 2, "--checkpoint is of microVMs"),
        (["run", "x.py:f", "--name", "a\nb"], 2, "not the name of a run: 'a\\nb'"),
        (["tag", "feed", "a=b"], 1, "no such run: feed"),
        (["run", "x.py:f", "--retry", "often"], 2, "--retry 'often' has no number of attempts"),
        (["run", "x.py:f", "--retry", "3:soon"], 2, "--retry '3:soon': the pause"),
        (["run", "x.py:f", "--retry", "fire=3"], 2, "no such kind of failure: 'fire'"),
        (["cancel", "feed", "--clean-up", "x"], 2, "--clean-up"),
        (["checkpoint", "feed"], 1, "no such run: feed"),
        (["run", "--", "ls", "-l"], 2, "a program needs an image"),
        (["run", "--image", "i", "--input", "1", "--", "ls", "-l"], 2, "--input is for agents"),
        (["runs", "--state", "asleep"], 2, "'asleep' is unknown"),
        (["show", "feed"], 1, "no such run: feed"),
        (["log", "feed"], 1, "no such run: feed"),
        (["approve", "feed"], 1, "no such run: feed"),
        (["cancel", "feed"], 1, "no such run: feed"),
        (["signal", "feed", "go", "{"], 2, "VALUE is not JSON"),
        (["signal", "feed", "go", "1"], 1, "no such run: feed"),
        (["shwo"], 2, "Did you mean 'show'?"),
        (["show"], 2, "RUN"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_starts(served: Shell, words: list[str], status: int, said: str) -> None:
    assert said in served.refused(*words, status=status, stdin="{")
    assert served("runs", "-q").stdout == ""


def test_the_tab_key(served: Shell) -> None:
    def offered(*words: str) -> list[str]:
        return served("completion", "--words", *words).stdout.split()

    served("queue", "create", "slow")
    assert offered("re") == ["rewind"] and offered("queue", "in") == ["inspect"]
    assert offered("queue", "rm", "") == ["slow"] and offered("show", "") == []
    assert offered("log", "ex") == ["export"] and offered("log", "feed", "--ki") == ["--kind"]
    assert offered("runs", "--state", "susp") == ["suspended", "suspending"]
    assert offered("run", "--durability", "") == ["replay", "snapshot"]
    assert "complete -o default -F _perdure perdure" in served("completion", "bash").stdout
    assert "which shell" in served.refused("completion", status=2)


def test_the_only_server_has_no_id(served: Shell) -> None:
    assert served("servers", "-q").stdout == "" and len(served("servers").stdout.splitlines()) == 2


@pytest.mark.parametrize("name", perdure.command_names())
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert perdure.main([name, "--help"]) == 0
    assert name == perdure.command_module(name).NAME
    assert f"usage: perdure {name}" in capsys.readouterr().out.replace("Usage", "usage")


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert perdure.main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in perdure.command_names())


def test_it_starts_light() -> None:
    """0.15 s at most: nothing heavy is imported before a command needs it (times are for the benchmark)."""
    code = "import sys, perdure.cli.perdure as c; c.main(['runs', '--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"asyncio", "aiohttp", "msgspec", "http.client", "ssl", "pathlib", "perdure.model"}
    code = "import sys, perdure.client.server; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert not loaded & {"asyncio", "aiohttp", "perdure.gateway"}
