"""A life of ``make crash`` on a real microVM: what it is judged by holds, and who died is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from perdure.cli.perdure._image import ensure_default
from perdure.client.node import NodeClient
from perdure.host.paths import Home
from perdure.testing.crash.vms import Asked, VmMatrix
from perdure.testing.will import Will

pytestmark = pytest.mark.vm


@pytest.fixture
def image(home: Home, client: NodeClient) -> Iterator[str]:
    yield ensure_default()
    (home.root / "settings.toml").unlink(missing_ok=True)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", ["keeper", "node"])
def test_a_part_that_dies_while_a_run_resumes(home: Home, image: str, part: str) -> None:
    matrix = VmMatrix(Asked(0, ("resuming",), (part,)))
    with Will() as will:
        asyncio.run(matrix.run(home, image, will, lambda text, wrong: None))
    assert matrix.wrong == []
    [outcome] = matrix.outcomes
    assert [who for who, _, _ in outcome.killed] == [part]
