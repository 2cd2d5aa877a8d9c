"""One run that sleeps and wakes, over and over: nothing of its memory or files may be lost, and nothing may pile up.

    BENCH_CHAIN=200 make bench PARTS=chain      fewer cycles than the thousand that are the goal

A real server and a real microVM. The function holds some memory and a file. Each time a signal wakes it, it hashes
both, compares them with what it wrote down before, changes some of each, and tells the hashes; then it waits, and is
suspended at once. What it finds is compared here, too, with what it told one cycle ago: a guest that was taken back to
an older moment would believe itself. At the end the chain of its log is verified, and all of the store that it uses.

``make soak`` does the same to a sandbox without a run, with forks, checkpoints and roll-backs between the cycles.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from report import MEGABYTE, Report
from subject import Subject, served

from perdure.client.node import NodeClient
from perdure.client.server import ServerClient
from perdure.host.paths import Home

CYCLES = 1000
SHOWN_EVERY = 50
MEMORY_MIB, DISK_MIB = 4, 2  # that are hashed in each cycle
SOURCE = r"""
import hashlib, random
from perdure import agent

BLOCK, PATH = 4096, "/chain"

@agent()
def chained(ctx, memory_mib, disk_mib):
    memory = bytearray(random.Random(1).randbytes(memory_mib << 20))
    with open(PATH, "wb") as file:
        file.write(random.Random(2).randbytes(disk_mib << 20))
    of_memory = lambda: hashlib.blake2b(memory, digest_size=16).hexdigest()
    def of_disk():
        with open(PATH, "rb") as file:
            return hashlib.blake2b(file.read(), digest_size=16).hexdigest()
    known, count = [of_memory(), of_disk()], 0
    ctx.emit("on", {"count": count, "right": True, "found": known, "next": known})
    while True:
        ctx.wait_for("go")
        found, count = [of_memory(), of_disk()], count + 1
        for block in range(count % 61, len(memory) // BLOCK, 61):
            memory[block * BLOCK + count % BLOCK] ^= 1 + count % 255
        with open(PATH, "r+b") as file:
            for block in range(count % 97, (disk_mib << 20) // BLOCK, 97):
                file.seek(block * BLOCK + count % 4000)
                file.write(random.Random(count * 4096 + block).randbytes(64))  # the same when it is lived through again
        right, known = found == known, [of_memory(), of_disk()]
        ctx.emit("on", {"count": count, "right": right, "found": found, "next": known})
"""


@dataclass
class Found:
    """What the cycles were like (seconds), and what was wrong."""

    asked: int
    right: int = 0
    cycles_s: list[float] = field(default_factory=list)
    wakes_s: list[float] = field(default_factory=list)
    layers: int = 0
    stored_mb: float = 0.0
    server_mb: list[float] = field(default_factory=list)  # before and after
    recoveries: int = 0
    problems: list[str] = field(default_factory=list)

    def wrong(self, problem: str) -> None:
        self.problems.append(problem)
        print(f"WRONG: {problem}", file=sys.stderr)


def measure(home: Home, node: NodeClient) -> Found:
    found = Found(int(os.environ.get("BENCH_CHAIN") or CYCLES))
    with served(home) as server:
        run = Subject(server, SOURCE, "chained", 0.0, memory_mib=MEMORY_MIB, disk_mib=DISK_MIB)
        said = run.reaches("emit", "on").payload["value"]
        run.reaches("run.suspended")
        found.server_mb.append(_resident_mb(server))
        for number in range(1, found.asked + 1):
            begun = time.time()
            run.signal()
            told = run.reaches("emit", "on")
            last, said = said, told.payload["value"]
            asleep = run.reaches("run.suspended")
            found.wakes_s.append(told.time - begun)
            found.cycles_s.append(asleep.time - begun)
            if said["count"] != number or not said["right"] or said["found"] != last["next"]:
                found.wrong(f"cycle {number}: not where cycle {number - 1} ended: {said}, not {last['next']}")
            else:
                found.right += 1
            if number % SHOWN_EVERY == 0:
                print(f"  {number} cycles, the last in {found.cycles_s[-1]:.2f} s", file=sys.stderr)
        found.server_mb.append(_resident_mb(server))
        run.verify()
        info = run.info()
        found.recoveries = info.recoveries
        suspended = sum(1 for _ in server.entries(run.id, kind="run.suspended"))
        if suspended != found.asked + 1:
            found.wrong(f"{suspended} suspends in its log, not {found.asked + 1}")
        _look(node, info.sandbox_id, found)
        run.end()
    return found


def _look(node: NodeClient, sandbox: str, found: Found) -> None:
    """What its snapshots have become at the node."""
    for finding in node.store.verify(sandbox).findings:
        found.wrong(f"at the end: {finding.object}: {finding.problem}")
    info = node.get(sandbox)
    assert info.snapshot is not None
    (newest,) = [one for one in node.store.list(sandbox=sandbox) if one.digest == info.snapshot.digest]
    found.layers = max(newest.memory_layers, newest.disk_layers)
    found.stored_mb = info.stored_bytes / MEGABYTE


def _resident_mb(server: ServerClient) -> float:
    status = Path(f"/proc/{server.status()['pid']}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1e3


def add(report: Report, found: Found) -> None:
    name = "chain of suspends of one run"
    right = 0 if found.problems else found.right
    report.add(f"{name}: cycles without an error", right, "", goal=f"value >= {CYCLES}")
    half = max(len(found.cycles_s) // 2, 1)
    report.add(f"{name}: a cycle, first half", statistics.median(found.cycles_s[:half]), "s")
    over = f"{name}: a cycle, first half"
    report.add(f"{name}: a cycle, second half", statistics.median(found.cycles_s[half:] or [0.0]), "s", over=over)
    report.add(f"{name}: of it from a signal to the next call", statistics.median(found.wakes_s), "s")
    report.add(f"{name}: layers of the last snapshot", found.layers, "")
    report.add(f"{name}: stored at the end", found.stored_mb, "MB")
    report.add(f"{name}: memory of the server, before", found.server_mb[0], "MB")
    report.add(f"{name}: memory of the server, after", found.server_mb[1], "MB")
    report.add(f"{name}: recoveries meanwhile", found.recoveries, "")
