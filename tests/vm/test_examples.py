"""The examples that need programs of their own, in real microVMs: a browser and an encoder that sleep, a coding agent.

Their image is half a gigabyte of Debian packages, and they take minutes where processors are emulated: they run by
`make examples`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.client.node import NodeClient
from perdure.host.paths import Home
from perdure.model import RunState
from perdure.testing import coding, speeches
from perdure.testing.durable_runs import Run, Scripted, scripted

__all__ = ["scripted"]

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not os.environ.get("PERDURE_TEST_EXAMPLES"), reason="these take minutes: make examples"),
]
EXAMPLES = Path(__file__).parents[2] / "examples"
IMAGE = "perdure-examples"
PACKAGES = ("chromium-headless-shell", "curl", "ffmpeg", "git", "libpython3-stdlib", "python3-minimal")
MEMORY_MIB = 1024  # of all: a template is made for each size
FILM = {"SECONDS_OF_FILM": "12"}
FRAMES = 120
DEADLINE_S = 600.0  # an encoder and a browser are slow where processors are emulated, and slower on a busy machine
# The example finds a repository in its machine.
CODER = """

@agent()
def mends(ctx: Context, files: dict[str, str], task: str) -> dict[str, object]:
    git("init", "--quiet", "-b", "main", "first")
    for name, text in files.items():
        Path("first", name).write_text(text)
    git("add", "--all", at="first")
    git("-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", "Count owls", at="first")
    git("clone", "--quiet", "--bare", "first", "owls.git")
    told = coder(ctx, str(Path("owls.git").absolute()), task)
    return {**told, "log": git("log", "--format=%s", "main", at="owls.git").splitlines()}
"""


@pytest.fixture
def image(home: Home, client: NodeClient) -> str:
    """Made once per checkout."""
    if IMAGE not in {image.name.partition(":")[0] for image in client.images()}:
        client.build_image(IMAGE, PACKAGES)
    return IMAGE


@pytest.fixture
def start(image: str, scripted: Scripted) -> Callable[..., Run]:
    return lambda **asked: scripted.start(image=image, memory_mib=MEMORY_MIB, **asked)


def text(name: str) -> str:
    return (EXAMPLES / name).read_text()


def encoded(said: str) -> tuple[int, int]:
    """The encoder's process, and how many frames it has."""
    found = re.fullmatch(rf"ffmpeg (\d+): (\d+) of {FRAMES} frames\n?", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


def test_a_browser_sleeps_and_goes_on_with_its_page(start: Callable[..., Run]) -> None:
    run = start(source=text("browser.py"), file="browser.py", function="browser", input={"name": "owl"})
    run.wait_for("run.suspended")
    (wait,) = run.info().waits
    before: dict[str, Any] = wait["show"]
    assert (before["name"], before["visits"]) == ("owl", "1")
    run.server.approve(run.id, approved=True)
    info = run.ends(DEADLINE_S)
    assert info.state is RunState.COMPLETED, info
    after = info.result["after"]
    assert info.result["before"] == before and after["connections"] == 1
    assert {name: after[name] for name in ("name", "visits", "at")} == {
        name: before[name] for name in ("name", "visits", "at")
    }
    assert after["ticks"] > before["ticks"] and after["news"] > before["news"]
    assert info.result["sent"] == [{"name": ["owl"]}]
    assert (info.suspends, info.recoveries) == (1, 0) and run.is_gone()


def test_an_encoder_sleeps_half_way(start: Callable[..., Run]) -> None:
    run = start(command=["sh", "-c", text("encode.sh")], env=FILM)
    run.wait_for("run.suspended")
    (wait,) = run.info().waits
    encoder, before = encoded(wait["show"])
    assert FRAMES / 4 <= before < FRAMES
    run.server.approve(run.id, approved=True)
    at_its_wake = encoded(run.wait_for("emit").payload["value"])
    assert at_its_wake[0] == encoder and before <= at_its_wake[1] < FRAMES
    info = run.ends(DEADLINE_S)
    assert info.state is RunState.COMPLETED, info
    assert info.result["output"] == f"{FRAMES}\n"
    assert (info.suspends, info.recoveries) == (1, 0) and run.is_gone()


def test_a_coding_agent_goes_on_with_its_files(
    start: Callable[..., Run], scripted: Scripted, kill_below: Callable[[int], None]
) -> None:
    """Its machine is lost in the middle of its work, and sleeps while a person looks at it."""
    scripted.provider.acts = [scripted.provider.says(turn) for turn in coding.turns()]
    files = {"owls.py": coding.BROKEN, "test_owls.py": coding.TESTS, ".gitignore": "__pycache__/\n"}
    run = start(
        source=text("coder.py") + CODER, file="coder.py", function="mends", policy={"checkpoint_turns": 1},
        input={"files": files, "task": "Count all nests"},
    )  # fmt: skip
    run.wait_for("snapshot", 2)
    kill_below(run.node.get(run.info().sandbox_id).machine["firecracker_pid"])
    run.wait_for("run.suspended")
    run.server.approve(run.id, approved=True)
    info = run.ends(DEADLINE_S)
    assert info.state is RunState.COMPLETED, info
    assert (info.result["said"], info.result["pushed"]) == (coding.SAID, True)
    assert info.result["log"] == ["Count all nests", "Count owls"]
    failed, *_, passed = coding.heard(scripted.provider.asked)
    assert "FAILED (failures=1)" in failed and "OK" in passed
    assert len(scripted.provider.asked) == info.turns_asked == len(coding.turns()) and info.recoveries == 1
    assert run.is_gone()


def test_a_shell_script_is_an_agent(start: Callable[..., Run], scripted: Scripted) -> None:
    scripted.provider.acts = [scripted.provider.says(speeches.chat("Mice."))]
    run = start(command=["sh", "-c", text("agent.sh")])
    run.wait_for("run.suspended")
    assert run.info().waits[0]["show"] == "Mice.\n"
    run.server.approve(run.id, approved=True, comment="fine")
    info = run.ends(DEADLINE_S)
    assert (info.state, info.result["output"]) == (RunState.COMPLETED, "Mice.\n"), info
    assert run.wait_for("emit").payload["value"] == "fine"
    assert run.is_gone()
