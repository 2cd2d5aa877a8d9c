"""examples/coder.py on a real repository: its tests fail, a model mends it, and what a person approves is pushed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from perdure.client import source
from perdure.model import RunState
from perdure.runs.record import StartRequest
from perdure.testing import coding
from perdure.testing.scripted import ScriptedProvider

from .conftest import House

pytestmark = pytest.mark.timeout(120)
EXAMPLE = Path(__file__).parents[3] / "examples" / "coder.py"


@pytest.fixture
async def model() -> AsyncIterator[ScriptedProvider]:
    made = ScriptedProvider()
    made.acts = [made.says(turn) for turn in coding.turns()]
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def provider_url(model: ScriptedProvider) -> str:
    return model.url


@pytest.mark.parametrize("approved", [True, False])
async def test_it_mends_a_repository(house: House, model: ScriptedProvider, tmp_path: Path, approved: bool) -> None:
    bare = coding.repository(tmp_path / "origin")
    agent = source.read(f"{EXAMPLE}:coder")
    given = {"repository": str(bare), "task": "Count all nests"}
    request = StartRequest(image="any", source=agent.source, file=agent.file, function="coder", input=given)
    run_id = (await house.engine.start(request))[0].id
    async with asyncio.timeout(60), aclosing(house.log.follow(run_id)) as entries:
        async for entry in entries:
            if entry.kind == "wait.started":
                break
    diff = entry.payload["wait"]["show"]
    assert "-    return sum(nests[1:])\n+    return sum(nests)\n" in diff and diff.count("diff --git") == 1
    await house.engine.approve(run_id, None, approved=approved)
    info = await house.engine.ended(run_id, 60)
    assert info.state is RunState.COMPLETED, info.error
    assert info.result == {"said": coding.SAID, "diff": diff, "pushed": approved}
    failed, missing, read, written, passed = coding.heard(model.asked)
    assert "FAILED (failures=1)" in failed and failed.endswith("exit status 1")
    assert missing.startswith("FileNotFoundError") and (read, written) == (coding.BROKEN, "written")
    assert "OK" in passed and passed.endswith("exit status 0")
    assert coding.git(bare, "log", "--format=%s", "main").splitlines() == ["Count all nests"] * approved + [
        "Count owls"
    ]
    if approved:
        assert coding.git(bare, "show", "main:owls.py") == coding.MENDED
