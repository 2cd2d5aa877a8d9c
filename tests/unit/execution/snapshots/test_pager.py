"""The pager, under ASan and UBSan, serves a real process through a real userfaultfd.

No VM: what faults is perdure.testing.faulting.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from perdure.execution.snapshots import restore
from perdure.formats import memorymap
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Snapshot
from perdure.formats.memorymap import MemoryMap
from perdure.linux import userfaultfd
from perdure.testing.pagers import Peer, Serve, Served, fnv
from perdure.testing.snapshots import BLOCKS, Bench, facts

try:
    os.close(userfaultfd.open_descriptor())
except OSError as reason:
    pytest.skip(f"userfaultfd is not permitted here: {reason}", allow_module_level=True)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_all_of_memory_is_what_was_captured(serve: Serve, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, memory = chain
    with serve(snapshot) as held:
        assert held.machine.ask("read", 0, BLOCKS) == digest(memory)
        figures = held.settled(lambda now: now["copied_bytes"] + now["zero_bytes"] == len(memory))
        assert figures["frames"] == figures["decompressed"] == figures["frames_total"]
        assert 0 < figures["faults"] < BLOCKS / 2


def test_in_any_order_and_over_two_regions(serve: Serve, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, memory = chain
    order = list(range(BLOCKS))
    random.Random(5).shuffle(order)
    with serve(snapshot, [100, BLOCKS - 100]) as held:
        for number in order:
            expected = digest(memory[number * BLOCK : (number + 1) * BLOCK])
            assert held.machine.ask("read", number, 1) == expected


def test_what_the_machine_wrote_stays(serve: Serve, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, memory = chain
    with serve(snapshot) as held:
        held.machine.ask("write", 30, 77)
        expected = bytearray(memory)
        expected[30 * BLOCK] = 77
        assert held.machine.ask("read", 0, BLOCKS) == digest(bytes(expected))


def test_the_working_set_is_recorded_and_pushed_at_the_next_restore(
    bench: Bench, serve: Serve, chain: tuple[Snapshot, bytes]
) -> None:
    snapshot, memory = chain
    with serve(snapshot) as held:
        for number in (200, 7, 90):
            held.machine.ask("read", number, 1)
        recorded = held.stat()["working_set"]
        assert recorded[0] == 200
        assert set(recorded) <= {200, 7, 90}
    bench.store.keep_working_set(snapshot.digest, recorded)
    with serve(snapshot) as held:
        for number in (200, 7, 90):
            assert held.machine.ask("read", number, 1) == digest(memory[number * BLOCK : (number + 1) * BLOCK])
        figures = held.settled(lambda now: now["prefetched"] + now["faults"] - now["stale_faults"] == len(recorded))
        assert figures["working_set"] == recorded
        assert held.machine.ask("read", 0, BLOCKS) == digest(memory)


def test_removed_blocks_are_zeros_afterwards(serve: Serve, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, memory = chain
    with serve(snapshot) as held:
        held.machine.ask("read", 0, 10)
        assert held.machine.ask("remove", 5, 40) == 0
        expected = memory[: 5 * BLOCK] + bytes(40 * BLOCK) + memory[45 * BLOCK :]
        assert held.machine.ask("read", 0, BLOCKS) == digest(expected)


def test_it_ends_with_its_machine(serve: Serve, chain: tuple[Snapshot, bytes]) -> None:
    with serve(chain[0]) as held:
        held.machine.ask("read", 3, 1)
        held.machine.process.kill()
        assert held.ended() == 0


def test_it_ends_with_its_keeper(serve: Serve, chain: tuple[Snapshot, bytes]) -> None:
    with serve(chain[0]) as held:
        held.machine.ask("read", 3, 1)
        held.hang_up()
        assert held.ended() == 0


def test_a_corrupt_frame_is_named_and_ends_the_pager(bench: Bench, serve: Serve, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, _ = chain
    with serve(snapshot) as held:
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
    bench: Bench, serve: Serve, chain: tuple[Snapshot, bytes]
) -> None:
    snapshot, _ = chain
    bench.store.keep_working_set(snapshot.digest, range(BLOCKS))
    path = bench.store.blob_path(snapshot.memory.layers[-1].digest)

    def damage() -> None:
        with path.open("r+b") as file:
            file.seek(40)
            file.write(b"\0\0\0\0")

    with serve(snapshot, damage=damage) as held:
        assert held.said()["details"]["layer"] == path.name
        assert held.ended() == 1


def test_a_machine_of_another_size_is_refused(serve: Serve, chain: tuple[Snapshot, bytes]) -> None:
    with serve(chain[0], [BLOCKS - 1]) as held:
        said = held.said()
        assert said["code"] == "snapshot-invalid" and "another layout" in said["message"]
        assert held.ended() == 1


def test_a_layer_that_was_cut_short_is_named(bench: Bench, serve: Serve, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, _ = chain
    with serve(snapshot) as held:
        held.machine.ask("read", 0, 1)
        path = bench.store.blob_path(snapshot.memory.layers[0].digest)
        os.truncate(path, 10)
        held.machine.send("read", 0, BLOCKS)
        said = held.said()
        assert (said["code"], said["details"]["layer"]) == ("snapshot-invalid", path.name)
        assert "the file ends within it" in said["message"]
        assert held.ended() == 1


CONTENT = bytes(range(256)) * 64  # of four blocks
FRAMES = {
    "its checksum is not the seek table's": zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT[::-1]),
    "its header is not": zstandard.ZstdCompressor(write_checksum=False).compress(CONTENT),
    "its header is not that": zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT[:-BLOCK]),
    "its header is not that of": zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(
        CONTENT
    ),
    "its header is not that of the frame": b"".join(
        2 * [zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT)]
    ),
    "it is too short": b"\x28\xb5\x2f\xfd",
}


@pytest.mark.parametrize("reason", FRAMES)
def test_a_frame_that_is_not_what_the_map_says_is_refused(
    bench: Bench, serve: Serve, chain: tuple[Snapshot, bytes], reason: str
) -> None:
    data = FRAMES[reason]
    (bench.root / "layer").write_bytes(data)
    checksum = 1 if "checksum" in reason else int.from_bytes(data[-4:], "little")

    def only(table: MemoryMap) -> MemoryMap:
        """All of memory is zeros but the first four blocks."""
        one = memorymap.column([0])
        return table._replace(
            layers=[str(bench.root / "layer")],
            partial=[False],
            first=memorymap.column([0, 4]),
            source=memorymap.column([memorymap.FRAME, memorymap.ZERO]),
            at=memorymap.column([0, 0]),
            frame_layer=one,
            frame_offset=memorymap.wide_column([0]),
            frame_compressed=memorymap.column([len(data)]),
            frame_blocks=memorymap.column([4]),
            frame_checksum=memorymap.column([checksum]),
            frame_number=memorymap.column([7]),
            frame_present=memorymap.column([1]),
            frame_runs=memorymap.column([0, 1]),
            by_frame=one,
            hot=memorymap.column(),
        )

    with serve(chain[0], change=only) as held:
        held.machine.send("read", 0, 1)
        said = held.said()
        assert (said["code"], said["details"]) == ("snapshot-invalid", {"layer": "layer", "frame": 7})
        assert reason in said["message"]
        assert held.ended() == 1


@pytest.mark.parametrize("part", ["layer", "template", "map"])
def test_what_is_not_there_is_named(
    bench: Bench, serve: Serve, pager_program: Path, chain: tuple[Snapshot, bytes], part: str
) -> None:
    snapshot, _ = chain
    gone = f"/nowhere/{part}"
    changes: dict[str, Callable[[MemoryMap], MemoryMap]] = {
        "layer": lambda table: table._replace(layers=[gone, *table.layers[1:]]),
        "template": lambda table: table._replace(template=gone),
    }
    if part == "map":
        with Served(pager_program, bench.root / "p.sock", gone) as held:
            said = held.said()
    else:
        with serve(snapshot, (), change=changes[part]) as held:
            said = held.said()
    assert said["code"] == "snapshot-invalid"
    assert f"{gone} cannot be opened: No such file" in said["message"]


def test_a_template_of_another_size_is_refused(bench: Bench, serve: Serve, chain: tuple[Snapshot, bytes]) -> None:
    short = bench.root / "short"
    short.write_bytes(bytes(BLOCK))
    with serve(chain[0], (), change=lambda table: table._replace(template=str(short))) as held:
        assert f"template {short} has {BLOCK} bytes, not {BLOCKS * BLOCK}" in held.said()["message"]
        assert held.ended() == 1


def test_a_template_that_shrinks_meanwhile_ends_the_pager(
    bench: Bench, serve: Serve, chain: tuple[Snapshot, bytes]
) -> None:
    with serve(chain[0]) as held:
        held.machine.ask("read", 0, 1)
        os.truncate(bench.templates / "warm" / "memory", 0)
        held.machine.send("read", 0, BLOCKS)
        assert held.said()["message"] == "the template's memory cannot be read"
        assert held.ended() == 1


def test_everything_is_brought_and_the_pager_goes_away(serve: Serve, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, memory = chain
    with serve(snapshot) as held:
        held.machine.ask("write", 30, 77)
        held.machine.ask("remove", 100, 2)
        held.say("populate")
        last, resident = held.said(), held.said()
        assert resident == {"event": "resident"}
        assert last["frames"] == last["frames_total"] and last["working_set"]
        assert held.ended() == 0
        expected = bytearray(memory)
        expected[30 * BLOCK] = 77
        expected[100 * BLOCK : 102 * BLOCK] = bytes(2 * BLOCK)
        assert held.machine.ask("read", 0, BLOCKS) == digest(bytes(expected))
        assert held.machine.ask("remove", 5, 1) == 0  # nobody has to hear of it any more
        assert held.machine.ask("write", 5, 1) is None


def test_populating_may_be_asked_for_before_there_is_a_machine(serve: Serve, chain: tuple[Snapshot, bytes]) -> None:
    snapshot, memory = chain
    with serve(snapshot, ()) as held:
        held.say("populate")
        assert held.stat()["frames"] == 0
        held.start([BLOCKS])
        assert (held.said()["event"], held.said()["event"]) == ("stat", "resident")
        assert held.ended() == 0
        assert held.machine.ask("read", 0, BLOCKS) == digest(memory)


def test_it_lets_go_in_the_midst_of_faults_and_removals(
    serve: Serve, chain: tuple[Snapshot, bytes], pager_build: Path
) -> None:
    """Faults on zeros and removals come at the very moment at which the kernel takes over: none fails, none waits."""
    snapshot, _ = chain
    for _ in range(10):
        with (
            serve(snapshot, (), program=pager_build / "pager") as held,
            Peer(pager_build / "peer", held.path, BLOCKS) as peer,
        ):
            peer.tell("flood 200 8")
            held.settled(lambda now: now["faults"] > 100)
            held.say("populate")
            assert (held.said()["event"], held.said()["event"]) == ("stat", "resident")
            assert held.ended() == 0
            assert peer.answer() == "0"


def test_many_threads_at_once_decompress_each_frame_once(
    bench: Bench, serve: Serve, chain: tuple[Snapshot, bytes], pager_build: Path
) -> None:
    snapshot, memory = chain
    for seed in range(8):
        with serve(snapshot, ()) as held, Peer(pager_build / "peer", held.path, BLOCKS) as peer:
            peer.ask(f"scatter {seed} 16")
            assert peer.ask(f"sum 0 {BLOCKS}") == fnv(memory)
            figures = held.settled(lambda now: now["copied_bytes"] + now["zero_bytes"] == len(memory))
            assert figures["frames"] == figures["decompressed"] == figures["frames_total"]


def test_a_pushed_working_set_under_many_faults_is_decompressed_once_too(
    bench: Bench, serve: Serve, chain: tuple[Snapshot, bytes], pager_build: Path
) -> None:
    snapshot, memory = chain
    bench.store.keep_working_set(snapshot.digest, random.Random(3).sample(range(BLOCKS), 200))
    for seed in range(8):
        with serve(snapshot, ()) as held, Peer(pager_build / "peer", held.path, BLOCKS) as peer:
            peer.ask(f"scatter {seed} 16")
            assert peer.ask(f"sum 0 {BLOCKS}") == fnv(memory)
            figures = held.settled(lambda now: now["copied_bytes"] + now["zero_bytes"] == len(memory))
            assert figures["frames"] == figures["decompressed"] == figures["frames_total"]


def test_a_flood_of_removals_beside_faults(serve: Serve, chain: tuple[Snapshot, bytes], pager_build: Path) -> None:
    """Whatever was removed is zeros from then on, at once, and everything else is what it was."""
    snapshot, memory = chain
    for _ in range(4):
        with serve(snapshot, ()) as held, Peer(pager_build / "peer", held.path, BLOCKS) as peer:
            assert peer.ask("flood 20 8") == "0"
            assert held.stat()["faults"] > 0
            expected = bytearray(memory)
            for number in range(1, BLOCKS, 4):
                expected[number * BLOCK : (number + 1) * BLOCK] = bytes(BLOCK)
            assert peer.ask(f"sum 0 {BLOCKS}") == fnv(bytes(expected))


@pytest.mark.parametrize("pause", [2000, 4000, 8000])
def test_a_removal_while_its_block_is_filled(tmp_path: Path, pager_build: Path, pause: int) -> None:
    """What a worker is about to copy is removed: it must not come back. No sanitizers: it is about microseconds."""
    blocks = 1 << 14
    bench = Bench(tmp_path, blocks)
    held = {number: (b"%d " % number * BLOCK)[:BLOCK] for number in range(blocks)}
    snapshot = bench.capture(bench.template(bytes(blocks * BLOCK)), held, bytes(BLOCK))
    files = restore.prepare(bench.store, snapshot, folder=bench.root, templates=bench.templates, facts=facts(blocks))
    with (
        Served(pager_build / "pager", bench.root / "p.sock", files.memory_map) as served,
        Peer(pager_build / "peer", served.path, blocks) as peer,
    ):
        assert peer.ask(f"race {pause}") == "0"


def test_a_spare_waits_until_it_is_told_what_to_serve(bench: Bench, pager_program: Path) -> None:
    with Served(pager_program, bench.root / "p.sock") as held:
        assert held.stat()["working_set"] == []
        held.say("have", frames=[[0, 0]])
        held.say("populate")
        held.report.sendall(b'\n{"op"\n[]\n{"op": 5}\n{"op": "stat", "x": [{}, [1.5e3, "\\ud800"]]}\n')
        assert held.stat()["frames_total"] == 0
    assert held.ended() == 0


def test_an_idle_pager_has_little_memory_of_its_own(
    bench: Bench, serve: Serve, chain: tuple[Snapshot, bytes], pager_build: Path
) -> None:
    snapshot, _ = chain
    with serve(snapshot, program=pager_build / "pager") as held:
        held.machine.ask("read", 0, BLOCKS)

        def unique_kib() -> int:
            lines = Path(f"/proc/{held.process.pid}/smaps_rollup").read_text().splitlines()
            return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))

        held.settled(lambda _: unique_kib() <= 3 << 10)
