"""How fast the pager serves memory, natively, beside what decompression plus memcpy can do on one core.

    python tests/performance/bench_pager.py [MIB]

The memory is like a guest's: text and code, a third of it zeros. One process faults on every page in order (each
fault waits for a whole frame); another lets the whole memory be pushed as its working set.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import socket
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import zstandard

from perdure.execution.snapshots import pager, restore, source, spaces, templates
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Snapshot
from perdure.testing.faulting import Machine
from perdure.testing.snapshots import Bench, facts

ROUNDS = 5


def content(blocks: int) -> dict[int, bytes]:
    """Blocks of this Python's own files, in runs with zeros between."""
    folder = Path(sysconfig.get_path("stdlib"))
    data = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    data += Path(os.path.realpath(sys.executable)).read_bytes()
    draw = random.Random(1)
    held: dict[int, bytes] = {}
    block = 0
    while block < blocks:
        run = min(draw.randint(1, 60), blocks - block)
        for number in range(block, block + run):
            at = draw.randrange(len(data) - BLOCK)
            held[number] = data[at : at + BLOCK]
        block += run + draw.randint(1, 30)
    return held


def baseline(bench: Bench, snapshot: Snapshot) -> tuple[int, float]:
    """(bytes, seconds): every frame decompressed and copied once, by one thread."""
    with spaces.memory_of(bench.store, snapshot, templates.load(bench.templates, "warm")) as space:
        layer = space.layers[0]
        file = layer.path.read_bytes()
        parts = [file[frame.offset : frame.offset + frame.compressed] for frame in layer.frames]
        total = sum(frame.size for frame in layer.frames)
    target = ctypes.create_string_buffer(total)
    place = ctypes.addressof(target)
    ctypes.memset(place, 1, total)
    decompressor = zstandard.ZstdDecompressor()
    began = time.perf_counter()
    for part in parts:
        data = decompressor.decompress(part)
        ctypes.memmove(place, data, len(data))
        place += len(data)
    return total, time.perf_counter() - began


def serve(bench: Bench, snapshot: Snapshot, blocks: int, *, touch: bool) -> tuple[float, dict[str, int]]:
    """(seconds, the pager's figures) until all of memory was touched, or pushed."""
    files = restore.prepare(bench.store, snapshot, folder=bench.root, templates=bench.templates, facts=facts(blocks))
    path = bench.root / "p.sock"
    path.unlink(missing_ok=True)
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as listener, ours, theirs, ours.makefile("rb") as lines:
        listener.bind(str(path))
        listener.listen(1)
        pid = os.fork()
        if pid == 0:
            ours.close()
            pager.serve(listener, str(files.memory_map), theirs)
            os._exit(0)
        with Machine(str(path), [blocks], connect=False) as machine:
            machine.ask("ready")
            began = time.perf_counter()
            machine.send("connect")
            machine.ask("touch", 0, blocks if touch else 1)
            ours.sendall(b'{"op": "stat"}\n')
            figures = json.loads(lines.readline())
            taken = time.perf_counter() - began
        os.waitpid(pid, 0)
    return taken, figures


def main() -> None:
    blocks = (int(sys.argv[1]) if len(sys.argv) > 1 else 64) * 256
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), blocks)
        snapshot = bench.capture(bench.template(bytes(blocks * BLOCK)), content(blocks), bytes(BLOCK))
        source.HELD_BYTES_MAX = 1 << 20  # so that nearly all of it happens while the clock runs
        best, faulted, pushed = 0.0, 0.0, 0.0
        for _ in range(ROUNDS):  # the best of each: whatever else the machine does only makes it slower
            total, seconds = baseline(bench, snapshot)
            best = max(best, total / seconds)
            seconds, figures = serve(bench, snapshot, blocks, touch=True)
            faulted = max(faulted, figures["copied_bytes"] / seconds)
            bench.store.keep_working_set(snapshot.digest, figures["working_set"])
            seconds, figures = serve(bench, snapshot, blocks, touch=False)
            pushed = max(pushed, figures["copied_bytes"] / seconds)
            bench.store.keep_working_set(snapshot.digest, [])
        print(f"{total / 1e6:.0f} MB in {snapshot.config.memory_bytes / 1e6:.1f} MB of layer, best of {ROUNDS}")
        show("decompression + memcpy, one core", best, best)
        show("every page faulted in order", faulted, best)
        show("pushed as the working set", pushed, best)


def show(what: str, rate: float, best: float) -> None:
    print(f"{what:38}{rate / 1e6:7.0f} MB/s   {rate / best:.2f} x")


if __name__ == "__main__":
    main()
