"""How fast the pager serves memory, natively, beside what decompression plus memcpy can do on one core.

    python tests/performance/bench_pager.py [MIB]

The memory is like a guest's: text and code, a third of it zeros. One process (native, pager/tests/peer.c) faults on
every page in order; another lets the whole memory be pushed as its working set; a third faults from eight threads in
orders of their own. Bytes that were copied count, zeros do not. Needs gcc and make beside the product's own assets.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from perdure.execution.snapshots import restore, spaces, templates
from perdure.formats import memorymap
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Snapshot
from perdure.host import assets
from perdure.host.paths import Home
from perdure.testing.snapshots import Bench, facts

ROUNDS = 7
ROOT = Path(__file__).parents[2]
SETTLE_S = 2.0  # after which an idle pager has given its buffers back


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


class Served:
    """A pager, and a native process whose memory it serves."""

    def __init__(self, program: Path, peer: Path, bench: Bench, snapshot: Snapshot) -> None:
        shape = facts(bench.blocks)
        files = restore.prepare(bench.store, snapshot, folder=bench.root, templates=bench.templates, facts=shape)
        path = bench.root / "p.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            self.report, theirs = socket.socketpair()
            with theirs:
                passed = (listener.fileno(), theirs.fileno())
                self.pager = subprocess.Popen([program, *map(str, passed)], pass_fds=passed)
        self.lines = self.report.makefile("rb")
        self.peer = subprocess.Popen(
            [peer, path, str(bench.blocks)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.map = files.memory_map

    def say(self, **message: str) -> None:
        self.report.sendall(json.dumps(message).encode() + b"\n")

    def tell(self, line: str) -> None:
        assert self.peer.stdin is not None
        self.peer.stdin.write(line + "\n")
        self.peer.stdin.flush()

    def ask(self, line: str) -> str:
        assert self.peer.stdout is not None
        self.tell(line)
        return self.peer.stdout.readline().strip()

    def stat(self) -> dict[str, int]:
        self.say(op="stat")
        return dict(json.loads(self.lines.readline()))

    def unique_kib(self) -> int:
        """Its private pages (proc_pid_smaps(5))."""
        lines = Path(f"/proc/{self.pager.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))

    def end(self) -> None:
        self.peer.kill()
        self.peer.communicate()
        self.pager.wait()
        self.lines.close()
        self.report.close()


BASELINE = "decompression + memcpy, one core"


@dataclass
class Best:
    """Bytes a second, the best of ROUNDS each: whatever else the machine does only makes it slower."""

    baseline: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    idle_kib: int = 0  # unique memory of a pager that has nothing to do
    served_bytes: int = 0
    layer_bytes: int = 0

    def served(self, how: str, rate: float, note: str = "") -> None:
        if rate > self.rates.get(how, 0.0):
            self.rates[how], self.notes[how] = rate, note


def measure(mib: int = 64) -> Best:
    """Serve a memory of this size in each way, in turn with the baseline."""
    blocks = mib * 256
    subprocess.run(["make", "-s", "-C", ROOT / "pager", "../build/pager/peer"], check=True)
    peer = ROOT / "build/pager/peer"
    program = assets.ensure(Home.find()).pager
    best = Best()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), blocks)
        snapshot = bench.capture(bench.template(bytes(blocks * BLOCK)), content(blocks), bytes(BLOCK))
        best.layer_bytes = snapshot.config.memory_bytes
        for _ in range(ROUNDS):
            best.served_bytes, seconds = baseline(bench, snapshot)
            best.baseline = max(best.baseline, best.served_bytes / seconds)

            served = Served(program, peer, bench, snapshot)
            served.say(op="serve", map=str(served.map))
            served.tell("connect")
            seconds = float(served.ask(f"touch 0 {blocks} 1"))
            figures = served.stat()
            note = f"{figures['faults']} faults, {figures['cpu_s'] / seconds:.2f} of a core"
            best.served("every page faulted in order", figures["copied_bytes"] / seconds, note)
            served.end()

            served = Served(program, peer, bench, snapshot)
            served.say(op="serve", map=str(served.map))
            served.tell("connect")
            seconds = float(served.ask("scatter 1 8"))
            best.served("faulted by eight threads at once", served.stat()["copied_bytes"] / seconds)
            served.end()

            # All of it is the working set, from the moment at which the pager learns of it.
            table = memorymap.decode(served.map.read_bytes())
            every = [table.first[table.by_frame[start]] for start in table.frame_runs[:-1]]
            bench.store.keep_working_set(snapshot.digest, every)
            served = Served(program, peer, bench, snapshot)
            served.ask("sum 0 0")  # it is up
            began = time.perf_counter()
            served.say(op="serve", map=str(served.map))
            served.tell("connect")
            while (figures := served.stat())["frames"] < figures["frames_total"]:
                time.sleep(0.001)
            best.served("pushed as the working set", figures["copied_bytes"] / (time.perf_counter() - began))
            bench.store.keep_working_set(snapshot.digest, [])
            time.sleep(SETTLE_S)
            best.idle_kib = served.unique_kib()
            served.end()
    return best


def main() -> None:
    best = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 64)
    print(f"{best.served_bytes / 1e6:.0f} MB in {best.layer_bytes / 1e6:.1f} MB of layer, best of {ROUNDS}")
    for what, rate in {BASELINE: best.baseline, **best.rates}.items():
        ratio = rate / best.baseline
        print(f"{what:38}{rate / 1e6:7.0f} MB/s   {ratio:.2f} x   {best.notes.get(what, '')}")
    print(f"unique memory of the idle pager: {best.idle_kib} KiB")


if __name__ == "__main__":
    main()
