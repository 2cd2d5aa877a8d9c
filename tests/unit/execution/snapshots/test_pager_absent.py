"""Layers that are only partly here: what the pager wants, what it does when it comes, and when it does not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Snapshot
from perdure.formats.memorymap import MemoryMap, column
from perdure.linux import userfaultfd
from perdure.testing.pagers import Serve, Served
from perdure.testing.remotelayers import RemoteLayers, Wanted
from perdure.testing.snapshots import BLOCKS, Bench

try:
    os.close(userfaultfd.open_descriptor())
except OSError as reason:
    pytest.skip(f"userfaultfd is not permitted here: {reason}", allow_module_level=True)


@pytest.fixture
def remote(tmp_path: Path) -> RemoteLayers:
    return RemoteLayers(tmp_path)


def wanted(held: Served) -> Wanted:
    said = held.said()
    assert said["event"] == "want", said
    return [(layer, number) for layer, number in said["frames"]]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def serve_all(held: Served, remote: RemoteLayers) -> dict[str, Any]:
    """Fetch whatever is wanted, until something else is said; that."""
    while (said := held.said())["event"] == "want":
        held.say("have", frames=remote.fetch([(layer, number) for layer, number in said["frames"]]))
    return said


def test_what_is_wanted_is_fetched_and_served(
    serve: Serve, chain: tuple[Snapshot, bytes], remote: RemoteLayers
) -> None:
    snapshot, memory = chain
    with serve(snapshot, (100, BLOCKS - 100), change=remote.empty) as held:
        held.machine.send("read", 0, BLOCKS)
        while len(remote.here) < len(remote.table.frame_layer):
            held.say("have", frames=remote.fetch(wanted(held)))
        assert held.machine.answer() == digest(memory)
        figures = held.settled(lambda now: now["frames"] == now["frames_total"])
        assert (figures["decompressed"], figures["wanted"]) == (figures["frames_total"], [])


def test_a_fault_wants_its_frame_first_and_neighbours_with_it(
    serve: Serve, chain: tuple[Snapshot, bytes], remote: RemoteLayers
) -> None:
    snapshot, memory = chain
    with serve(snapshot, change=remote.empty) as held:
        block = remote.blocks_of_frames()[1]
        held.machine.send("read", block, 1)
        frames = wanted(held)
        assert frames[0] == remote.frame(block)
        assert 1 < len(frames) <= 1 + 8
        assert sorted(held.stat()["wanted"]) == sorted(map(list, frames))
        held.say("have", frames=remote.fetch(frames[:1]))
        assert held.machine.answer() == digest(memory[block * BLOCK : (block + 1) * BLOCK])
        assert sorted(held.stat()["wanted"]) == sorted(map(list, frames[1:]))


def test_faults_on_what_is_here_go_on_meanwhile(
    serve: Serve, chain: tuple[Snapshot, bytes], remote: RemoteLayers
) -> None:
    """Two machines' threads: one waits for what is far away, the other must not."""
    snapshot, memory = chain

    def half(table: MemoryMap) -> MemoryMap:
        emptied = remote.empty(table)
        present = column([1 if number % 2 else 0 for number in range(len(table.frame_layer))])
        remote.fetch(
            [
                (table.frame_layer[number], table.frame_number[number])
                for number in range(len(table.frame_layer))
                if number % 2
            ]
        )
        return emptied._replace(frame_present=present)

    with serve(snapshot, (), change=half) as held:
        held.say("populate")
        held.start([BLOCKS])
        frames = wanted(held)
        assert remote.here.isdisjoint(frames)
        here = remote.blocks_of_frames()[1]
        assert held.machine.ask("read", here, 1) == digest(memory[here * BLOCK : (here + 1) * BLOCK])
        held.say("have", frames=remote.fetch(frames))
        serve_all(held, remote)
        assert held.said()["event"] == "resident"
        assert held.machine.ask("read", 0, BLOCKS) == digest(memory)


def test_the_working_set_is_wanted_at_once_and_together(
    bench: Bench, serve: Serve, chain: tuple[Snapshot, bytes], remote: RemoteLayers
) -> None:
    snapshot, memory = chain
    bench.store.keep_working_set(snapshot.digest, range(BLOCKS))
    with serve(snapshot, (), change=remote.empty) as held:  # nobody has connected
        frames = wanted(held)
        assert len(frames) == len(remote.table.frame_layer)
        held.say("have", frames=remote.fetch(frames))
        held.start([BLOCKS])
        assert held.machine.ask("read", 0, BLOCKS) == digest(memory)


def test_everything_is_brought_from_far_away(serve: Serve, chain: tuple[Snapshot, bytes], remote: RemoteLayers) -> None:
    snapshot, memory = chain
    with serve(snapshot, change=remote.empty) as held:
        held.say("populate")
        assert serve_all(held, remote)["event"] == "stat"
        assert held.said()["event"] == "resident"
        assert held.ended() == 0
        assert held.machine.ask("read", 0, BLOCKS) == digest(memory)


def test_what_is_lost_ends_the_pager_with_the_reason(
    serve: Serve, chain: tuple[Snapshot, bytes], remote: RemoteLayers
) -> None:
    with serve(chain[0], change=remote.empty) as held:
        held.machine.send("read", 0, BLOCKS)
        wanted(held)
        held.say("lost", message='the store is gone: "5xx"\\', hint="Is its server up? \u00fc\U0001f600")
        said = held.said()
        assert (said["event"], said["code"]) == ("failed", "unavailable")
        assert said["message"] == 'the store is gone: "5xx"\\'
        assert held.ended() == 1


def test_what_does_not_come_in_time_ends_the_pager(
    serve: Serve, chain: tuple[Snapshot, bytes], remote: RemoteLayers
) -> None:
    with serve(chain[0], change=remote.empty, timeouts_ms=(100,)) as held:
        held.machine.send("read", 0, BLOCKS)
        layer, number = wanted(held)[0]
        said = held.said()
        assert (said["event"], said["code"]) == ("failed", "unavailable")
        assert said["details"] == {"layer": f"cache-{layer}", "frame": number}
        assert "was not fetched in time" in said["message"]
        assert held.ended() == 1


def test_what_comes_damaged_is_named(serve: Serve, chain: tuple[Snapshot, bytes], remote: RemoteLayers) -> None:
    with serve(chain[0], change=remote.empty) as held:
        held.machine.send("read", 0, BLOCKS)
        frames = wanted(held)
        held.say("have", frames=frames[:1])  # nothing was written: zeros
        said = held.said()
        assert (said["code"], said["details"]["frame"]) == ("snapshot-invalid", frames[0][1])
        assert held.ended() == 1


def test_answers_that_nobody_asked_for_do_nothing(
    serve: Serve, chain: tuple[Snapshot, bytes], remote: RemoteLayers
) -> None:
    snapshot, memory = chain
    with serve(snapshot, change=remote.empty) as held:
        for frames in (
            [[0, 99], [7, 0], [1 << 40, 0], [0, 1 << 40]],
            [[0], [], [0, 0, 0]],
            [0, 1],
            {"a": 1},
            None,
            "x",
        ):
            held.say("have", frames=frames)
        assert held.stat()["frames"] == 0
        held.machine.send("read", 0, BLOCKS)
        while len(remote.here) < len(remote.table.frame_layer):
            held.say("have", frames=remote.fetch(wanted(held)))
        assert held.machine.answer() == digest(memory)


def test_bytes_that_come_later_than_they_are_told_are_read_again(
    serve: Serve, chain: tuple[Snapshot, bytes], remote: RemoteLayers
) -> None:
    """As over a shared folder, whose reader may see the zeros from before for up to a second."""
    snapshot, memory = chain
    with serve(snapshot, change=remote.empty) as held:
        block = remote.blocks_of_frames()[1]
        held.machine.send("read", block, 1)
        frames = wanted(held)
        held.say("have", frames=frames[:1])
        assert held.stat()["frames"] == 0  # it has heard that, and found zeros
        remote.fetch(frames[:1])
        assert held.machine.answer() == digest(memory[block * BLOCK : (block + 1) * BLOCK])
