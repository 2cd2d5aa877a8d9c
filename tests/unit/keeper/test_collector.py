"""The real collector, with sanitizers, under the keeper's side of it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.errors import MachineFailed, NoSpace
from perdure.formats import capturefile
from perdure.formats.blockmap import BASE, BLOCK, LAYER, NO_BASE, ZERO
from perdure.formats.capturefile import CaptureFile
from perdure.keeper.collector import Collector, Ground
from perdure.keeper.loop import READ, Loop
from perdure.testing import smalldisks

DIGEST = bytes(range(32))
STATE = b"the device state" * 1000
PART = 2048  # blocks that one thread takes at a time


def written(path: Path, blocks: dict[int, bytes], count: int) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(count * BLOCK)
        for number, content in blocks.items():
            os.pwrite(file.fileno(), content, number * BLOCK)


def filled(seed: int) -> bytes:
    """0: zeros; odd ones differ from each other in their last byte only."""
    return bytes(BLOCK) if not seed else b"x" * (BLOCK - 1) + bytes([seed])


@contextlib.contextmanager
def running(loop: Loop, program: Path, template: Path | None) -> Iterator[Collector]:
    ground = None if template is None else Ground(str(template), DIGEST.hex())
    collector = Collector(loop, str(program), ground)
    try:
        yield collector
    finally:
        pidfd = collector._process.pidfd
        collector.close()
        assert loop.run_until(lambda: collector._process.pidfd < 0, 20.0), pidfd
        if ground is not None:
            ground.close()


def collected(
    place: Path, loop: Loop, program: Path, *, template: Path | None = None, full: bool = False
) -> CaptureFile:
    (place / "capture.state").write_bytes(STATE)
    folder = Path(tempfile.mkdtemp(dir=place))
    with running(loop, program, template) as collector:
        size = collector.collect(str(folder), holes_are_zeros=full)
    assert (folder / "state").read_bytes() == STATE
    held = (folder / "memory").read_bytes()
    assert size == len(STATE) + len(held)
    shutil.rmtree(folder)
    return capturefile.decode(held)


def sources(file: CaptureFile) -> dict[int, tuple[int, bytes]]:
    """For each block that a run names its source, and the content where it is in the file."""
    found = {}
    for run in file.runs:
        for number in range(run.length):
            data = b"" if run.source != LAYER else bytes(file.data[(run.at + number) * BLOCK :][:BLOCK])
            found[run.first + number] = (run.source, data)
    return found


seeds = st.dictionaries(st.integers(0, 40), st.integers(0, 3), max_size=25)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seeds, seeds, st.booleans(), st.booleans())
def test_every_block_is_named_for_what_it_is(
    place: Path,
    loop: Loop,
    collector_program: Path,
    memory: dict[int, int],
    template: dict[int, int],
    over: bool,
    full: bool,
) -> None:
    written(place / "capture.memory", {number: filled(seed) for number, seed in memory.items()}, 41)
    written(place / "template", {number: filled(seed) for number, seed in template.items()}, 41)
    file = collected(place, loop, collector_program, template=place / "template" if over else None, full=full)
    wanted = dict.fromkeys(range(41), (ZERO, b"")) if full else {}
    for number, seed in memory.items():
        same = over and template.get(number) == seed
        wanted[number] = (ZERO, b"") if not seed else (BASE, b"") if same else (LAYER, filled(seed))
    assert sources(file) == wanted
    assert (file.blocks, file.base) == (41, DIGEST if over else NO_BASE)


def test_a_large_memory_whose_runs_cross_the_parts_of_the_threads(
    place: Path, loop: Loop, collector_program: Path
) -> None:
    count = 5 * PART + 3
    changed = random.Random(7)
    memory = {number: filled(1 + number % 200) for number in range(PART - 5, 2 * PART + 5)}
    memory |= {number: filled(9) for number in changed.sample(range(3 * PART, count), 3000)}
    template = {number: memory[number] for number in list(memory)[::3]}
    written(place / "capture.memory", memory, count)
    written(place / "template", template, count)
    file = collected(place, loop, collector_program, template=place / "template")
    assert sources(file) == {
        number: (BASE, b"") if number in template else (LAYER, content) for number, content in memory.items()
    }
    # neighbours are one run, also where one thread ended and another began
    assert all(
        one.source != other.source or one.first + one.length != other.first
        for one, other in zip(file.runs, file.runs[1:], strict=False)
    )
    full = collected(place, loop, collector_program, full=True)
    assert sum(run.length for run in full.runs) == count and full.base == NO_BASE
    # looking has filled no hole of either file: they are in memory
    for path, held in ((place / "capture.memory", memory), (place / "template", template)):
        assert path.stat().st_blocks * 512 <= len(held) * BLOCK


def test_of_a_template_that_was_replaced_the_old_one_counts(place: Path, loop: Loop, collector_program: Path) -> None:
    written(place / "capture.memory", {1: filled(1), 2: filled(2)}, 4)
    (place / "capture.state").write_bytes(STATE)
    written(place / "template", {1: filled(1), 2: filled(3)}, 4)
    ground = Ground("template", DIGEST.hex())
    written(place / "template", {2: filled(2)}, 4)  # another file of that name
    collector = Collector(loop, str(collector_program), ground)
    (place / "out").mkdir()
    collector.collect("out", holes_are_zeros=False)
    collector.close()
    assert loop.run_until(lambda: collector._process.pidfd < 0, 20.0)
    ground.close()
    found = sources(capturefile.decode((place / "out/memory").read_bytes()))
    assert found == {1: (BASE, b""), 2: (LAYER, filled(2))}


def test_what_fails_leaves_nothing_and_says_why(place: Path, loop: Loop, collector_program: Path) -> None:
    (place / "capture.state").write_bytes(b"state")
    (place / "out").mkdir()

    def refused(error: type[Exception], words: str, template: Path | None = None, folder: str = "out") -> None:
        with (
            running(loop, collector_program, template) as collector,
            pytest.raises(error, match=words),
        ):
            collector.collect(folder, holes_are_zeros=False)
        assert list((place / "out").iterdir()) == []

    refused(MachineFailed, "opening the captured memory: No such file")
    written(place / "capture.memory", {number: filled(1) for number in range(2000)}, 2000)
    refused(MachineFailed, "could not be written to /nowhere", folder="/nowhere")
    written(place / "template", {}, 3)
    refused(MachineFailed, "another size", place / "template")
    (place / "capture.memory").write_bytes(b"not whole blocks")
    refused(MachineFailed, "mapping the captured memory: Invalid argument")
    (place / "capture.memory").write_bytes(b"")
    refused(MachineFailed, "mapping the captured memory: Invalid argument")
    (place / "out" / "memory").write_bytes(b"of a running machine")
    with running(loop, collector_program, None) as collector, pytest.raises(MachineFailed, match="File exists"):
        collector.collect("out", holes_are_zeros=False)
    assert (place / "out" / "memory").read_bytes() == b"of a running machine"
    assert not (place / "out" / "state").exists()


def test_what_a_hostile_machine_left_is_not_followed(place: Path, loop: Loop, collector_program: Path) -> None:
    """Firecracker's folder is its own: there may be anything under the names of the captured files."""
    (place / "jail").mkdir()
    (place / "out").mkdir()
    state, memory = place / "jail" / "capture.state", place / "jail" / "capture.memory"
    secret = place / "secret"
    written(secret, {0: filled(1)}, 4)

    def refused(words: str) -> None:
        with running(loop, collector_program, None) as collector, pytest.raises(MachineFailed, match=words):
            collector.collect("out", holes_are_zeros=True, place="jail")
        assert list((place / "out").iterdir()) == []

    state.symlink_to(secret)
    written(memory, {0: filled(2)}, 4)
    refused("Too many levels of symbolic links")
    state.unlink()
    os.mkfifo(state)
    refused("not a regular file")
    state.unlink()
    with state.open("wb") as file:
        file.truncate(1 << 40)
    refused("File too large")
    state.write_bytes(STATE)
    memory.unlink()
    memory.symlink_to(secret)
    refused("Too many levels of symbolic links")
    memory.unlink()
    os.mkfifo(memory)
    refused("mapping the captured memory")
    memory.unlink()
    written(memory, {0: filled(2)}, 4)
    with running(loop, collector_program, None) as collector:
        collector.collect("out", holes_are_zeros=True, place="jail")
    assert (place / "out" / "state").read_bytes() == STATE


@pytest.fixture
def small(place: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with smalldisks.mounted(place / "small", 1) as folder:
        yield folder


def test_no_space_is_said_as_such(place: Path, loop: Loop, collector_program: Path, small: Path) -> None:
    written(place / "capture.memory", {number: filled(1) for number in range(400)}, 400)
    for state in (b"state", bytes(2 << 20)):  # for the memory, for the state
        (place / "capture.state").write_bytes(state)
        with running(loop, collector_program, None) as collector, pytest.raises(NoSpace, match="no space left for a"):
            collector.collect(str(small), holes_are_zeros=False)
        assert list(small.iterdir()) == []


def test_a_collector_that_is_killed(place: Path, loop: Loop, collector_program: Path) -> None:
    (place / "capture.state").write_bytes(b"state")
    written(place / "capture.memory", {1: filled(1)}, 4)
    (place / "out").mkdir()
    with running(loop, collector_program, None) as collector:
        os.kill(collector._process.pid, 9)
        with pytest.raises(MachineFailed, match="killed by signal 9"):
            collector.collect("out", holes_are_zeros=False)
    assert list((place / "out").iterdir()) == []


def test_it_ends_when_its_keeper_goes(place: Path, loop: Loop, collector_program: Path) -> None:
    with running(loop, collector_program, None) as collector:
        collector._stream.close()
        loop.watch(collector._process.pidfd, READ, lambda _: None)  # it is readable at its end
        assert loop.run_until(lambda: collector._process.poll() is not None, 20.0)
        loop.forget(collector._process.pidfd)
        assert collector._process.status == 0
