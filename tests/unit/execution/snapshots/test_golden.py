"""Files written by any version of the formats are read for ever. The files under tests/golden are never edited.

snapshots-1: two snapshots, each with a layer over the one before, block maps of version 1. snapshots-2: the second of
them compacted, block maps of version 2, and a config with all optional fields.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from perdure.execution.snapshots import restore, spaces, templates
from perdure.execution.snapshots.care import compact, verify
from perdure.execution.snapshots.layers import Layer
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.templates import Template
from perdure.formats import memorymap
from perdure.formats.blockmap import BLOCK, LAYER
from perdure.testing.snapshots import BLOCKS, facts, sparse_file

GOLDEN = Path(__file__).parents[3] / "golden"


def block(number: int) -> bytes:
    return (f"block {number} ".encode() * 600)[:BLOCK]


def opened(name: str, folder: Path) -> tuple[Store, Template]:
    """A copy of the store, and the template that it lies over."""
    shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True)
    sparse_file(folder / "templates" / "warm" / "memory", FIRST, BLOCKS)
    return Store(folder / "store"), templates.load(folder / "templates", "warm")


FIRST = {number: block(number) for number in range(BLOCKS) if number % 3}
MEMORY = {number: FIRST.get(number, bytes(BLOCK)) for number in range(BLOCKS)}
MEMORY |= {number: block(number + 1000) for number in range(10, 60)}
MEMORY |= {number: bytes(BLOCK) if number % 2 else block(number + 2000) for number in range(30, 90)}
DISK = b"".join(block(number + 5) for number in range(20)) + bytes(20 * BLOCK)


@pytest.mark.parametrize("name", ["snapshots-1", "snapshots-2"])
def test_it_restores(tmp_path: Path, name: str) -> None:
    store, template = opened(name, tmp_path)
    snapshot = store.snapshots()[-1]
    with spaces.memory_of(store, snapshot, template) as space:
        assert space.read(0, BLOCKS) == b"".join(MEMORY.values())
    files = restore.prepare(store, snapshot, folder=tmp_path, templates=tmp_path / "templates", facts=facts())
    assert files.overlay.read_bytes() == DISK
    assert verify.whole(store, templates=tmp_path / "templates").findings == []


def test_a_memory_map_of_version_1(tmp_path: Path) -> None:
    store, _ = opened("snapshots-1", tmp_path)
    files = restore.prepare(
        store, store.snapshots()[-1], folder=tmp_path, templates=tmp_path / "templates", facts=facts()
    )
    kept = memorymap.decode((GOLDEN / "snapshots-1" / "memory.map").read_bytes())
    made = memorymap.decode(files.memory_map.read_bytes())
    assert made._replace(template=kept.template, layers=kept.layers) == kept


def test_what_version_2_brought(tmp_path: Path) -> None:
    store, _ = opened("snapshots-2", tmp_path)
    (snapshot,) = store.snapshots()
    assert len(snapshot.config.replaces) == 1
    use = snapshot.config.memory_use
    assert use is not None
    assert (use.total_kib, use.kernel_kib, use.processes[0].name) == (1000, 90, "python3")
    assert store.working_set(snapshot.digest) == [88, 12, 40, 255, 0, 31]
    with Layer(store.verified(snapshot.memory.layers[0])) as layer:
        places = {run.first: run.at for run in layer.map.runs if run.source == LAYER}
    assert (places[88], places[12], places[40]) == (0, 1, 2)


def test_compacting_version_1_gives_the_same_content(tmp_path: Path) -> None:
    store, template = opened("snapshots-1", tmp_path)
    made = compact.compact(store, store.snapshots()[-1].digest, templates_folder=tmp_path / "templates")
    with spaces.memory_of(store, made, template) as space:
        assert space.read(0, BLOCKS) == b"".join(MEMORY.values())
