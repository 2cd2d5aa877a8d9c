"""Forks that a killed node was making are not there for the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.errors import InvalidValue
from perdure.execution.sandboxes import forking
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.formats.manifest import Origin
from perdure.host.paths import Home
from perdure.model import SandboxSpec, SandboxState, Ulimit
from perdure.testing.sandboxes import sleeping
from perdure.testing.snapshots import BLOCKS, Bench, blocks_of

SOURCE, HALF, OTHER = "b0b0b0b0b0b0", "f0f0f0f0f0f0", "e0e0e0e0e0e0"


class Ground:
    """Nothing lives below."""

    async def living_launcher(self) -> None:
        return None


async def test_what_was_not_acknowledged_is_removed_at_the_next_start(tmp_path: Path) -> None:
    bench, home = Bench(tmp_path), Home(tmp_path, tmp_path / "cache").make()
    snapshot = bench.capture(bench.template(blocks_of([1] * BLOCKS)), {}, blocks_of(range(4)), sandbox_id=SOURCE)
    for sandbox_id, state in (
        (SOURCE, SandboxState.SUSPENDED),
        (HALF, SandboxState.RESUMING),
        (OTHER, SandboxState.SUSPENDED),
    ):
        sleeping(home.sandboxes, sandbox_id, sandbox_id, [snapshot], state=state)
    killed = forking.making(home.run, [HALF, "a0a0a0a0a0a0"])  # the second was not even begun
    killed.__enter__()
    assert forking.unfinished(home.run) == {HALF, "a0a0a0a0a0a0"}
    ground: Any = Ground()
    nothing: Any = None
    every = Sandboxes(home, ground, nothing, bench.store, nothing)
    await every.load()
    assert {sandbox.id for sandbox in every.all()} == {SOURCE, OTHER}
    assert bench.store.digests() == [snapshot.digest]
    assert not list(home.run.glob("fork-*"))
    assert forking.unfinished(home.run) == set()


def test_once_done_they_are_as_any_other(tmp_path: Path) -> None:
    with forking.making(tmp_path, [HALF]) as folder:
        (folder / "overlay").write_bytes(b"shared")
        assert forking.unfinished(tmp_path) == {HALF}
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="did not"), forking.making(tmp_path, [HALF]):
        raise ValueError("it did not work")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wish",
    [
        {"ulimits": [Ulimit(name="nosuch", soft=1, hard=1)]},
        {"cap_drop": ["CAP_NOSUCH"]},
        {"extra_hosts": ["x:fe80::1%a\n1.2.3.4 evil"]},
    ],
)
def test_a_snapshot_from_elsewhere_that_says_what_cannot_be_is_refused(tmp_path: Path, wish: dict[str, Any]) -> None:
    bench = Bench(tmp_path)
    snapshot = bench.capture(bench.template(blocks_of([1] * BLOCKS)), {}, blocks_of(range(4)), sandbox_id=SOURCE)
    origin = Origin(main=SOURCE, spec=SandboxSpec(image="i", **wish))
    snapshot = msgspec.structs.replace(snapshot, config=msgspec.structs.replace(snapshot.config, origin=origin))
    with pytest.raises(InvalidValue):
        forking.origin_of(snapshot)
