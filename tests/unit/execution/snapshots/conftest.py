"""A store and templates in a temporary folder; pagers that serve from them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from perdure.execution.snapshots import restore
from perdure.formats import memorymap
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Snapshot
from perdure.formats.memorymap import MemoryMap
from perdure.testing.pagers import Serve, Served
from perdure.testing.places import Place
from perdure.testing.snapshots import BLOCKS, Bench, facts
from perdure.testing.stores import Shelf


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def new_bench(tmp_path: Path) -> Callable[[], Bench]:
    """For property tests: a fresh bench for each example."""
    count = iter(range(1 << 30))

    def make() -> Bench:
        return Bench(tmp_path / str(next(count)))

    return make


def _block(seed: int) -> bytes:
    return random.Random(seed).randbytes(BLOCK) if seed else bytes(BLOCK)


@pytest.fixture
def chain(bench: Bench) -> tuple[Snapshot, bytes]:
    """Three generations over a template with holes; the memory that the last one has."""
    seeds = [number % 7 * (number // 40 % 2) for number in range(BLOCKS)]
    memory = [_block(seed) for seed in seeds]
    made: Any = bench.template(b"".join(memory))
    for generation in range(1, 4):
        changed = random.Random(generation).sample(range(BLOCKS), 90)
        for place in changed:
            memory[place] = _block(random.Random(place * generation).choice([0, 100 + place]))
        made = bench.capture(made, {place: memory[place] for place in changed}, bytes(64 * BLOCK))
    return made, b"".join(memory)


@pytest.fixture
def serve(bench: Bench, pager_program: Path) -> Serve:
    """Restores a snapshot. ``change`` alters the memory map, ``damage`` is done after everything was verified.

    With ``regions`` (in blocks) the pager has a machine, which connects at once; without, none.
    """

    @contextmanager
    def begin(
        snapshot: Snapshot,
        regions: Sequence[int] = (BLOCKS,),
        *,
        damage: Callable[[], None] = lambda: None,
        change: Callable[[MemoryMap], MemoryMap] = lambda table: table,
        timeouts_ms: Sequence[int] = (),
        program: Path = pager_program,
    ) -> Iterator[Served]:
        files = restore.prepare(bench.store, snapshot, folder=bench.root, templates=bench.templates, facts=facts())
        damage()
        table = change(memorymap.decode(files.memory_map.read_bytes()))
        files.memory_map.write_bytes(memorymap.encode(table))
        with Served(program, bench.root / "p.sock", files.memory_map, timeouts_ms=timeouts_ms) as held:
            if regions:
                held.start(regions)
            yield held

    return begin


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    shelf.remote.gate.set()
    shelf.cache.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    with place.here, place.there:
        yield place
