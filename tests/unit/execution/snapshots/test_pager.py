"""The pager, under ASan and UBSan, serves a real process through a real userfaultfd.

No VM: what faults is perdure.testing.faulting.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from perdure.execution.snapshots import restore
from perdure.formats import memorymap
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Snapshot
from perdure.formats.memorymap import MemoryMap
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
    """A pager, and the machine that it serves."""

    def __init__(
        self,
        program: Path,
        bench: Bench,
        map_path: Path,
        regions: list[int] | None = None,
        timeouts_ms: tuple[int, ...] = (),
    ) -> None:
        self._path = str(bench.root / "p.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._path)
            listener.listen(1)
            self.report, theirs = socket.socketpair()
            with theirs:
                passed = (listener.fileno(), theirs.fileno())
                self.process = subprocess.Popen(
                    [program, *map(str, (*passed, *timeouts_ms))], pass_fds=passed, stderr=subprocess.PIPE
                )
        self.report.settimeout(DEADLINE_S)
        self._lines = self.report.makefile("rb")
        self.say(op="serve", map=str(map_path), template="")
        self.machine = Machine(self._path, regions or [BLOCKS])

    def say(self, **message: Any) -> None:
        self.report.sendall(json.dumps(message).encode() + b"\n")

    def said(self) -> dict[str, Any]:
        return json.loads(self._lines.readline() or b"{}")

    def stat(self) -> dict[str, Any]:
        self.say(op="stat")
        return self.said()

    def settled(self, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Its figures, once they are so: a page is in the machine a moment before it is counted."""
        deadline = time.monotonic() + DEADLINE_S
        while not done(figures := self.stat()):
            assert time.monotonic() < deadline, figures
        return figures

    def ended(self) -> int:
        """Its exit status."""
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        self.machine.__exit__()
        self._lines.close()
        self.report.close()
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        Path(self._path).unlink()
        assert not errors, errors.decode()  # the sanitizers' reports


Serve = Callable[..., AbstractContextManager[Served]]


@pytest.fixture
def served(bench: Bench, pager_program: Path) -> Serve:
    """``damage`` is done after the restore was prepared and verified."""

    @contextmanager
    def serve(
        snapshot: Snapshot,
        regions: list[int] | None = None,
        damage: Callable[[], None] = lambda: None,
        change: Callable[[MemoryMap], MemoryMap] = lambda table: table,
        **options: Any,
    ) -> Iterator[Served]:
        files = restore.prepare(bench.store, snapshot, folder=bench.root, templates=bench.templates, facts=facts())
        damage()
        table = change(memorymap.decode(files.memory_map.read_bytes()))
        files.memory_map.write_bytes(memorymap.encode(table))
        held = Served(pager_program, bench, files.memory_map, regions, **options)
        try:
            yield held
        finally:
            held.close()

    return serve


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


def test_all_of_memory_is_what_was_captured(served: Serve, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, memory = chain
    with served(snapshot) as held:
        assert held.machine.ask("read", 0, BLOCKS) == digest(memory)
        figures = held.settled(lambda now: now["copied_bytes"] + now["zero_bytes"] == len(memory))
        assert figures["frames"] == figures["decompressed"] == figures["frames_total"]
        assert 0 < figures["faults"] < BLOCKS / 2


def test_in_any_order_and_over_two_regions(served: Serve, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, memory = chain
    order = list(range(BLOCKS))
    random.Random(5).shuffle(order)
    with served(snapshot, [100, BLOCKS - 100]) as held:
        for number in order:
            expected = digest(memory[number * BLOCK : (number + 1) * BLOCK])
            assert held.machine.ask("read", number, 1) == expected


def test_what_the_machine_wrote_stays(served: Serve, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, memory = chain
    with served(snapshot) as held:
        held.machine.ask("write", 30, 77)
        expected = bytearray(memory)
        expected[30 * BLOCK] = 77
        assert held.machine.ask("read", 0, BLOCKS) == digest(bytes(expected))


def test_the_working_set_is_recorded_and_pushed_at_the_next_restore(
    bench: Bench, served: Serve, chain: tuple[Snapshot, bytes]
) -> None:
    snapshot, memory = chain
    with served(snapshot) as held:
        for number in (200, 7, 90):
            held.machine.ask("read", number, 1)
        recorded = held.stat()["working_set"]
        assert recorded[0] == 200
        assert set(recorded) <= {200, 7, 90}
    bench.store.keep_working_set(snapshot.digest, recorded)
    with served(snapshot) as held:
        for number in (200, 7, 90):
            assert held.machine.ask("read", number, 1) == digest(memory[number * BLOCK : (number + 1) * BLOCK])
        figures = held.stat()
        assert figures["prefetched"] + figures["faults"] - figures["stale_faults"] == len(recorded)
        assert figures["working_set"] == recorded
        assert held.machine.ask("read", 0, BLOCKS) == digest(memory)


def test_removed_blocks_are_zeros_afterwards(served: Serve, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, memory = chain
    with served(snapshot) as held:
        held.machine.ask("read", 0, 10)
        assert held.machine.ask("remove", 5, 40) == 0
        expected = memory[: 5 * BLOCK] + bytes(40 * BLOCK) + memory[45 * BLOCK :]
        assert held.machine.ask("read", 0, BLOCKS) == digest(expected)


def test_it_ends_with_its_machine(served: Serve, chain: tuple[Snapshot, bytes]) -> None:
    with served(chain[0]) as held:
        held.machine.ask("read", 3, 1)
        held.machine.process.kill()
        assert held.ended() == 0


def test_it_ends_with_its_keeper(served: Serve, chain: tuple[Snapshot, bytes]) -> None:
    with served(chain[0]) as held:
        held.machine.ask("read", 3, 1)
        held.report.shutdown(socket.SHUT_RDWR)
        assert held.ended() == 0


def test_a_corrupt_frame_is_named_and_ends_the_pager(
    bench: Bench, served: Serve, chain: tuple[Snapshot, bytes]
) -> None:
    snapshot, _ = chain
    with served(snapshot) as held:
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
        assert held.ended() == 1


def test_a_corrupt_frame_of_the_working_set_is_named_too(
    bench: Bench, served: Serve, chain: tuple[Snapshot, bytes]
) -> None:
    snapshot, _ = chain
    bench.store.keep_working_set(snapshot.digest, range(BLOCKS))
    path = bench.store.blob_path(snapshot.memory.layers[-1].digest)

    def damage() -> None:
        with path.open("r+b") as file:
            file.seek(40)
            file.write(b"\0\0\0\0")

    with served(snapshot, damage=damage) as held:
        assert held.said()["details"]["layer"] == path.name
        assert held.ended() == 1


def test_a_machine_of_another_size_is_refused(served: Serve, chain: tuple[Snapshot, bytes]) -> None:
    with served(chain[0], [BLOCKS - 1]) as held:
        said = held.said()
        assert said["code"] == "snapshot-invalid" and "another layout" in said["message"]
        assert held.ended() == 1
