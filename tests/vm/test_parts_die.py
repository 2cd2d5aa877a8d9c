"""A life of ``make crash`` on a real microVM: what it is judged by holds, and who died is told."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.cli.perdure._image import ensure_default
from perdure.host.paths import Home
from perdure.testing.crash.vms import Asked, VmMatrix
from perdure.testing.postgres import binaries
from perdure.testing.will import Will

pytestmark = pytest.mark.vm
Fcrun = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def image(home: Home, fcrun: Fcrun) -> Iterator[str]:
    fcrun("host", "start")  # before the ledger has its address
    yield ensure_default()
    (home.root / "settings.toml").unlink(missing_ok=True)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", ["keeper", "node"])
def test_a_part_that_dies_while_a_run_resumes(home: Home, image: str, part: str) -> None:
    matrix = VmMatrix(Asked(random=0, states=("resuming",), parts=(part,)))
    with Will() as will:
        asyncio.run(matrix.run(home, image, "sqlite", will, lambda text, wrong: None))
    assert matrix.wrong == []
    [outcome] = matrix.outcomes
    assert [who for who, _, _ in outcome.killed] == [part]


@pytest.mark.skipif(binaries() is None, reason="PostgreSQL is not installed (Debian: postgresql)")
@pytest.mark.timeout(900)
def test_two_runs_are_alive_while_parts_die(home: Home, image: str, tmp_path: Path) -> None:
    """On PostgreSQL. What was killed is told of the runs that it hit, and kept as it goes."""
    asked = Asked(random=3, states=(), parts=("VM", "server"), at_once=2)
    result, kept = tmp_path / "result.json", set[int]()
    matrix = VmMatrix(asked, result=result)

    def look(text: str, wrong: list[str]) -> None:
        kept.add(len(json.loads(result.read_text())["kills"]))

    with Will() as will:
        asyncio.run(matrix.run(home, image, "postgres", will, look))
    assert matrix.wrong == []
    assert kept - {0} == {1, 2, 3}
    assert all(len(kill.states) == 1 for kill in matrix.kills if kill.part == "VM")
    assert {outcome.wish.name for outcome in matrix.outcomes} >= {"random 0", "random 1"}
