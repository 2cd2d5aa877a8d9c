"""Files written by format version 1 are read for ever. The files under tests/golden are never edited."""

from __future__ import annotations

import shutil
from pathlib import Path

from perdure.execution.snapshots import restore, spaces, templates
from perdure.execution.snapshots.store import Store
from perdure.formats import memorymap
from perdure.formats.blockmap import BLOCK
from perdure.testing.snapshots import BLOCKS, facts, sparse_file

GOLDEN = Path(__file__).parents[3] / "golden" / "snapshots-1"


def block(number: int) -> bytes:
    return (f"block {number} ".encode() * 600)[:BLOCK]


def test_version_1_restores(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    first = {number: block(number) for number in range(BLOCKS) if number % 3}
    sparse_file(tmp_path / "templates" / "warm" / "memory", first, BLOCKS)
    store = Store(tmp_path / "store")
    snapshot = store.snapshots()[-1]
    template = templates.load(tmp_path / "templates", "warm")
    memory = {number: first.get(number, bytes(BLOCK)) for number in range(BLOCKS)}
    memory |= {number: block(number + 1000) for number in range(10, 60)}
    memory |= {number: bytes(BLOCK) if number % 2 else block(number + 2000) for number in range(30, 90)}
    with spaces.memory_of(store, snapshot, template) as space:
        assert space.read(0, BLOCKS) == b"".join(memory.values())
    files = restore.prepare(store, snapshot, folder=tmp_path, templates=tmp_path / "templates", facts=facts())
    assert files.overlay.read_bytes() == b"".join(block(number + 5) for number in range(20)) + bytes(20 * BLOCK)
    kept = memorymap.decode((GOLDEN / "memory.map").read_bytes())
    made = memorymap.decode(files.memory_map.read_bytes())
    assert made._replace(template=kept.template, layers=kept.layers) == kept
