"""Whoever connects to the pager's socket instead of Firecracker can make it end with a reason, and nothing else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.execution.snapshots import restore
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Snapshot
from perdure.linux import userfaultfd
from perdure.testing.pagers import Peer, Served
from perdure.testing.snapshots import BLOCKS, Bench, facts

try:
    os.close(userfaultfd.open_descriptor())
except OSError as reason:
    pytest.skip(f"userfaultfd is not permitted here: {reason}", allow_module_level=True)

HANDSHAKE_MS = 200
BASE = 0x7F0000000000


@pytest.fixture
def held(bench: Bench, pager_program: Path, chain: tuple[Snapshot, bytes]) -> Iterator[Served]:
    """A pager to which nobody has connected yet."""
    files = restore.prepare(bench.store, chain[0], folder=bench.root, templates=bench.templates, facts=facts())
    with Served(pager_program, bench.root / "p.sock", files.memory_map, timeouts_ms=(60_000, HANDSHAKE_MS)) as served:
        yield served


@pytest.fixture
def peer(held: Served) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(held.path))
        yield connection


@pytest.fixture
def uffd() -> Iterator[int]:
    """A real one, in which nothing is registered."""
    fd = userfaultfd.open_descriptor()
    userfaultfd.negotiate(fd)
    yield fd
    os.close(fd)


def refusal(held: Served) -> str:
    """Why it ended."""
    said = held.said()
    assert (said["event"], said["code"]) == ("failed", "machine-failed")
    assert held.ended() == 1
    return str(said["message"])


def region(first: int = 0, blocks: int = BLOCKS, **other: Any) -> dict[str, Any]:
    """One that is right, but for what ``other`` says."""
    return {
        "base_host_virt_addr": BASE + first * BLOCK,
        "size": blocks * BLOCK,
        "offset": first * BLOCK,
        "page_size": BLOCK,
    } | other


HALF = BLOCKS // 2
NOT_REGIONS = {
    "garbage": b"\x00\xff\x7f",
    "a text": b"hello, I am not Firecracker",
    "an object": json.dumps(region()).encode(),
    "something after it": json.dumps([region()]).encode() + b" []",
    "a comma too much": json.dumps([region()]).encode()[:-1] + b",]",
    "a number": b"17 ",
    "a list of numbers": b"[1, 2]",
    "no closing brace": json.dumps([region()]).encode()[:-2] + b"]",
    "deep": b"[" * 5000,
    "deep where it is skipped": b'[{"x": ' + b"[" * 5000,
    "a size that is no number": json.dumps([region(size="1")]).encode(),
    "a size with a fraction": json.dumps([region(size=1.5)]).encode(),
    "a negative size": json.dumps([region(size=-4096)]).encode(),
    "a size of 65 bits": json.dumps([region(size=1 << 64)]).encode(),
    "a leading zero": json.dumps([region()]).encode().replace(b'"offset": 0', b'"offset": 00'),
    "no size": json.dumps([{"base_host_virt_addr": BASE, "offset": 0}]).encode(),
    "a control character": b'[{"a\nb": 1}]',
    "a lone escape": b'[{"\\x": 1}]',
    "half a pair": b'[{"\\ud800\\u0041": 1}]',
}
BAD_REGIONS = {
    "an address in a page": [region(base_host_virt_addr=BASE + 1)],
    "a size in a page": [region(size=BLOCKS * BLOCK - 1)],
    "an offset in a page": [region(offset=5)],
    "an empty region": [region(), region(size=0)],
    "huge pages": [region(page_size=2 << 20)],
    "an address that no process has": [region(base_host_virt_addr=1 << 60)],
    "an end beyond the last address": [region(base_host_virt_addr=(1 << 64) - BLOCK)],
    "an overlap": [region(0, HALF), region(0, HALF, base_host_virt_addr=BASE * 2 // 3 // BLOCK * BLOCK)],
    "an overlap of the machine's own": [region(0, HALF), region(HALF, HALF, base_host_virt_addr=BASE)],
    "a gap": [region(0, HALF), region(HALF + 1, HALF)],
    "an offset beyond": [region(offset=1 << 62)],
    "too many": [region(number, 1) for number in range(BLOCKS)],
}


@pytest.mark.parametrize("what", NOT_REGIONS)
def test_what_is_no_list_of_regions_is_refused(held: Served, peer: socket.socket, uffd: int, what: str) -> None:
    socket.send_fds(peer, [NOT_REGIONS[what]], [uffd])
    assert "handshake with the pager does not read" in refusal(held)


@pytest.mark.parametrize("what", BAD_REGIONS)
def test_regions_that_cannot_be_are_refused(held: Served, peer: socket.socket, uffd: int, what: str) -> None:
    socket.send_fds(peer, [json.dumps(BAD_REGIONS[what]).encode()], [uffd])
    assert "handshake with the pager does not read" in refusal(held)


@pytest.mark.parametrize("blocks", [1, BLOCKS - 1, BLOCKS + 1, 1 << 30])
def test_another_size_is_another_layout(held: Served, peer: socket.socket, uffd: int, blocks: int) -> None:
    socket.send_fds(peer, [json.dumps([region(blocks=blocks)]).encode()], [uffd])
    said = held.said()
    assert said["code"] == "snapshot-invalid"
    assert f"the machine has {blocks * BLOCK} bytes" in said["message"]


def test_one_that_never_ends_is_refused(held: Served, peer: socket.socket, uffd: int) -> None:
    socket.send_fds(peer, [b'[{"x": "'], [uffd])
    try:
        while True:
            peer.sendall(b"a" * 4096)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has heard enough
    assert "it does not end" in refusal(held)


@pytest.mark.parametrize("said", [b"", b'[{"base_host'])
def test_one_that_breaks_off_is_refused(held: Served, peer: socket.socket, uffd: int, said: bytes) -> None:
    if said:
        socket.send_fds(peer, [said], [uffd])
    peer.shutdown(socket.SHUT_WR)
    assert "broke off" in refusal(held)


@pytest.mark.parametrize("said", [b"", b'[{"base_host'])
def test_one_that_says_no_more_is_refused(held: Served, peer: socket.socket, uffd: int, said: bytes) -> None:
    if said:
        socket.send_fds(peer, [said], [uffd])
    assert "did not come in time" in refusal(held)


def test_it_answers_its_keeper_meanwhile(held: Served, peer: socket.socket) -> None:
    peer.sendall(b"[")
    assert held.stat()["frames"] == 0


def test_no_descriptor_is_refused(held: Served, peer: socket.socket) -> None:
    peer.sendall(json.dumps([region()]).encode())
    assert "no userfaultfd" in refusal(held)


@pytest.mark.parametrize("count", [2, 8, 30])
def test_several_descriptors_are_refused(held: Served, peer: socket.socket, uffd: int, count: int) -> None:
    socket.send_fds(peer, [json.dumps([region()]).encode()], [uffd] * count)
    assert "more than one descriptor" in refusal(held)


def test_a_second_descriptor_is_refused(held: Served, peer: socket.socket, uffd: int) -> None:
    text = json.dumps([region()]).encode()
    socket.send_fds(peer, [text[:5]], [uffd])
    held.stat()  # it has read this much, or reads it now
    socket.send_fds(peer, [text[5:]], [uffd])
    assert "more than one descriptor" in refusal(held)


def test_a_descriptor_of_another_kind_is_refused(held: Served, peer: socket.socket) -> None:
    with Path("/dev/zero").open("rb") as other:
        socket.send_fds(peer, [json.dumps([region()]).encode()], [other.fileno()])
    assert "is no userfaultfd" in refusal(held)


def test_in_many_small_pieces_it_is_understood(held: Served, peer: socket.socket, uffd: int) -> None:
    text = json.dumps([region(unknown={"a": [None, True, -1.5e3, "\\u00e9"]})]).encode()
    socket.send_fds(peer, [text[:1]], [uffd])
    for at in range(1, len(text)):
        peer.send(text[at : at + 1])
    held.say("populate")
    said = held.said()  # nothing is registered there
    assert said["message"].startswith("the machine's memory cannot be filled")


def test_a_fault_elsewhere_is_refused(held: Served, pager_build: Path) -> None:
    with Peer(pager_build / "peer", held.path, BLOCKS) as peer:
        peer.tell(f"touch {BLOCKS} 1 1")  # registered, but not told of
        assert "outside of the machine's memory" in refusal(held)


def test_memory_that_moves_is_refused(held: Served, pager_build: Path) -> None:
    with Peer(pager_build / "peer", held.path, BLOCKS) as peer:
        peer.ask("touch 0 1 1")
        peer.tell("unmap")
        assert "changed in a way that is not served" in refusal(held)


def test_the_parsers_under_fuzz(pager_build: Path) -> None:
    seconds = os.environ.get("PERDURE_FUZZ_S", "3")
    done = subprocess.run(
        [pager_build / "fuzz", seconds], capture_output=True, text=True, timeout=float(seconds) * 10 + 60
    )
    assert done.returncode == 0, done.stdout + done.stderr
