"""The pager serves a real process through a real userfaultfd (no VM: what faults is perdure.testing.faulting)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import MachineFailed, PerdureError, SnapshotInvalid
from perdure.execution.snapshots import pager, restore
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Snapshot
from perdure.linux import userfaultfd
from perdure.testing.faulting import Machine
from perdure.testing.snapshots import BLOCKS, Bench, facts

try:
    os.close(userfaultfd.open_descriptor())
except OSError as reason:
    pytest.skip(f"userfaultfd is not permitted here: {reason}", allow_module_level=True)

DEADLINE_S = 20.0
DISK = bytes(64 * BLOCK)


def block(seed: int) -> bytes:
    return random.Random(seed).randbytes(BLOCK) if seed else bytes(BLOCK)


class Served:
    """A pager in a thread, and the machine that it serves."""

    def __init__(self, bench: Bench, snapshot: Snapshot, regions: list[int] | None, damage: Callable[[], None]) -> None:
        files = restore.prepare(bench.store, snapshot, folder=bench.root, templates=bench.templates, facts=facts())
        damage()
        self._path = str(bench.root / "p.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen(1)
        self.report, self._theirs = socket.socketpair()
        self.report.settimeout(DEADLINE_S)
        self.error: BaseException | None = None
        self._map = str(files.memory_map)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.machine = Machine(self._path, regions or [BLOCKS])

    def _serve(self) -> None:
        try:
            pager.serve(self._listener, self._map, self._theirs)
        except PerdureError as error:
            self.error = error

    def said(self) -> dict[str, Any]:
        with self.report.makefile("rb") as lines:
            return json.loads(lines.readline())

    def stat(self) -> dict[str, Any]:
        self.report.sendall(b'{"op": "stat"}\n')
        return self.said()

    def ended(self) -> bool:
        self._thread.join(DEADLINE_S)
        return not self._thread.is_alive()

    def close(self) -> None:
        self.machine.__exit__()
        self.report.close()
        assert self.ended()
        self._listener.close()
        self._theirs.close()
        Path(self._path).unlink()


@contextmanager
def served(
    bench: Bench, snapshot: Snapshot, regions: list[int] | None = None, damage: Callable[[], None] = lambda: None
) -> Iterator[Served]:
    """``damage`` is done after the restore was prepared and verified."""
    held = Served(bench, snapshot, regions, damage)
    try:
        yield held
    finally:
        held.close()


@pytest.fixture
def chain(bench: Bench) -> tuple[Snapshot, bytes]:
    """Three generations over a template with holes; the memory that the last one has."""
    seeds = [number % 7 * (number // 40 % 2) for number in range(BLOCKS)]
    memory = [block(seed) for seed in seeds]
    made: Any = bench.template(b"".join(memory))
    for generation in range(1, 4):
        changed = random.Random(generation).sample(range(BLOCKS), 90)
        for place in changed:
            memory[place] = block(random.Random(place * generation).choice([0, 100 + place]))
        made = bench.capture(made, {place: memory[place] for place in changed}, DISK)
    return made, b"".join(memory)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_all_of_memory_is_what_was_captured(bench: Bench, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, memory = chain
    with served(bench, snapshot) as held:
        assert held.machine.ask("read", 0, BLOCKS) == digest(memory)
        figures = held.stat()
        assert figures["copied_bytes"] + figures["zero_bytes"] == len(memory)
        assert figures["frames"] == figures["frames_total"]
        assert 0 < figures["faults"] < BLOCKS / 2


def test_in_any_order_and_over_two_regions(bench: Bench, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, memory = chain
    order = list(range(BLOCKS))
    random.Random(5).shuffle(order)
    with served(bench, snapshot, [100, BLOCKS - 100]) as held:
        for number in order:
            expected = digest(memory[number * BLOCK : (number + 1) * BLOCK])
            assert held.machine.ask("read", number, 1) == expected


def test_what_the_machine_wrote_stays(bench: Bench, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, memory = chain
    with served(bench, snapshot) as held:
        held.machine.ask("write", 30, 77)
        expected = bytearray(memory)
        expected[30 * BLOCK] = 77
        assert held.machine.ask("read", 0, BLOCKS) == digest(bytes(expected))


def test_the_working_set_is_recorded_and_pushed_at_the_next_restore(
    bench: Bench, chain: tuple[Snapshot, bytes]
) -> None:
    snapshot, memory = chain
    with served(bench, snapshot) as held:
        for number in (200, 7, 90):
            held.machine.ask("read", number, 1)
        recorded = held.stat()["working_set"]
        assert recorded[0] == 200
        assert set(recorded) <= {200, 7, 90}
    bench.store.keep_working_set(snapshot.digest, recorded)
    with served(bench, snapshot) as held:
        for number in (200, 7, 90):
            assert held.machine.ask("read", number, 1) == digest(memory[number * BLOCK : (number + 1) * BLOCK])
        figures = held.stat()
        assert figures["prefetched"] + figures["faults"] - figures["stale_faults"] == len(recorded)
        assert figures["working_set"] == recorded
        assert held.machine.ask("read", 0, BLOCKS) == digest(memory)


def test_removed_blocks_are_zeros_afterwards(bench: Bench, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, memory = chain
    with served(bench, snapshot) as held:
        held.machine.ask("read", 0, 10)
        assert held.machine.ask("remove", 5, 40) == 0
        expected = memory[: 5 * BLOCK] + bytes(40 * BLOCK) + memory[45 * BLOCK :]
        assert held.machine.ask("read", 0, BLOCKS) == digest(expected)


def test_it_ends_with_its_machine(bench: Bench, chain: tuple[Snapshot, bytes]) -> None:
    with served(bench, chain[0]) as held:
        held.machine.ask("read", 3, 1)
        held.machine.process.kill()
        assert held.ended()
        assert held.error is None


def test_it_ends_with_its_keeper(bench: Bench, chain: tuple[Snapshot, bytes]) -> None:
    with served(bench, chain[0]) as held:
        held.machine.ask("read", 3, 1)
        held.report.close()
        assert held.ended()
        assert held.error is None


def test_a_corrupt_frame_is_named_and_ends_the_pager(bench: Bench, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, _ = chain
    with served(bench, snapshot) as held:
        held.machine.ask("read", 0, 1)
        path = bench.store.blob_path(snapshot.memory.layers[-1].digest)
        with path.open("r+b") as file:  # after the restore verified it
            file.seek(40)
            file.write(b"\0\0\0\0")
        held.machine.send("read", 0, BLOCKS)
        said = held.said()
        assert said["event"] == "failed"
        assert said["details"]["layer"] == path.name
        assert f"{path}, frame {said['details']['frame']}" in said["message"]
        assert held.ended()
        assert isinstance(held.error, SnapshotInvalid)


def test_a_corrupt_frame_of_the_working_set_is_named_too(bench: Bench, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, _ = chain
    bench.store.keep_working_set(snapshot.digest, range(BLOCKS))
    path = bench.store.blob_path(snapshot.memory.layers[-1].digest)

    def damage() -> None:
        with path.open("r+b") as file:
            file.seek(40)
            file.write(b"\0\0\0\0")

    with served(bench, snapshot, damage=damage) as held:
        assert held.said()["details"]["layer"] == path.name
        assert held.ended()
        assert isinstance(held.error, SnapshotInvalid)


def test_a_machine_of_another_size_is_refused(bench: Bench, chain: tuple[Snapshot, bytes]) -> None:
    with served(bench, chain[0], [BLOCKS - 1]) as held:
        assert "another layout" in held.said()["message"]
        assert held.ended()


def test_a_machine_that_breaks_the_handshake_off_is_refused(bench: Bench, chain: tuple[Snapshot, bytes]) -> None:
    files = restore.prepare(bench.store, chain[0], folder=bench.root, templates=bench.templates, facts=facts())
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as peer, ours, theirs:
        listener.bind(str(bench.root / "p.sock"))
        listener.listen(1)
        peer.connect(str(bench.root / "p.sock"))
        peer.sendall(b'[{"base_host')
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises(MachineFailed, match="broke off"):
            pager.serve(listener, str(files.memory_map), theirs)
