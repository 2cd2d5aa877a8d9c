"""One sandbox through many generations of suspend and resume: nothing of it may be lost, and nothing may pile up.

    make soak           200 generations; prints progress and a summary; exit status 1 where anything was wrong

What it is told by the environment:

    SOAK_GENERATIONS    how many (200)
    SOAK_SECONDS        begin no further one after this time (no limit)
    SOAK_MEMORY_MIB     of memory that the guest fills, changes and checks (8)
    SOAK_DISK_MIB       the same of a file (4)
    SOAK_SNAPSHOTS      older snapshots are given up but for so many (10), so that sweeps run too
    SOAK_FORKS          each so many generations a fork of a live checkpoint is looked at (9; 0: never)
    SOAK_ROLL_BACKS     each so many it lives on for a moment, and is taken back to a checkpoint (13; 0: never)
    SOAK_VERIFY         the whole store is verified after each so many generations (50), and at the end
    SOAK_SANDBOX        go on with the sandbox of this name, or make it; it is kept, suspended. None: one of its own

In each generation the guest hashes all of its memory and its file and compares both with what it wrote down before;
then it changes some. This program compares the same with what the guest said one generation ago: a guest that was taken
back to an older moment would believe itself.
"""

from __future__ import annotations

import ast
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.client.node import NodeClient, ensure_running
from perdure.client.session import Session
from perdure.errors import PerdureError
from perdure.host import below
from perdure.host.paths import Home
from perdure.model import ExecSpec, SandboxSpec, SandboxState

IMAGE = "perdure-soak"
PACKAGES = ["python3-minimal"]
NAME = "perdure-soak"
SHOWN_EVERY = 10  # generations
SETTLED_S = 120.0  # for the last compaction
# A dict for each line of input, as Python writes it (its minimal package has no json). Memory and file are changed in
# blocks that move through all of them.
GUEST = r"""
import hashlib, os, sys
MEMORY, DISK, BLOCK = int(sys.argv[1]) << 20, int(sys.argv[2]) << 20, 4096
memory = bytearray(os.urandom(MEMORY))
path = "/soak"
with open(path, "wb") as file:
    file.write(os.urandom(DISK))
def of_memory():
    return hashlib.blake2b(memory).hexdigest()
def of_disk():
    with open(path, "rb") as file:
        return hashlib.blake2b(file.read()).hexdigest()
known = [of_memory(), of_disk()]
print({"up": os.getpid(), "next": known}, flush=True)
count = 0
for line in sys.stdin:
    found = [of_memory(), of_disk()]
    count += 1
    for block in range(count % 61, MEMORY // BLOCK, 61):
        memory[block * BLOCK + count % BLOCK] ^= 1 + count % 255
    with open(path, "r+b") as file:
        for block in range(count % 97, DISK // BLOCK, 97):
            file.seek(block * BLOCK + count % 4000)
            file.write(os.urandom(64))
    right, known = found == known, [of_memory(), of_disk()]
    print({"pid": os.getpid(), "count": count, "right": right, "found": found, "next": known}, flush=True)
"""


def setting(name: str, default: int) -> int:
    """A number of the environment."""
    text = os.environ.get(f"SOAK_{name}") or str(default)
    if not text.isdigit():
        raise SystemExit(f"soak: SOAK_{name} is {text!r}: it must be a number")
    return int(text)


@dataclass
class Figures:
    """What the generations were like, and what was wrong."""

    suspend_s: list[float] = field(default_factory=list)
    resume_s: list[float] = field(default_factory=list)
    stored_bytes: list[int] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    hosts_lost: int = 0

    def wrong(self, problem: str) -> None:
        self.problems.append(problem)
        print(f"WRONG: {problem}", flush=True)


class Guest:
    """The guest's lines, over one session that stays open while it sleeps."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lines = self._read()

    def _read(self) -> Iterator[dict[str, Any]]:
        rest = b""
        for _, data in self._session.outputs():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                try:
                    yield ast.literal_eval(line.decode())
                except (SyntaxError, ValueError):
                    raise SystemExit(f"soak: the guest said {(line + rest).decode(errors='replace')!r}") from None

    def hear(self) -> dict[str, Any]:
        for line in self._lines:
            return line
        raise SystemExit("soak: the guest's process has ended")

    def ask(self) -> dict[str, Any]:
        self._session.send_stdin(b"\n")
        return self.hear()

    def close(self) -> None:
        self._session.close()


class Soak:
    def __init__(self, client: NodeClient) -> None:
        self.client = client
        self.figures = Figures()
        self.nexts: dict[int, Any] = {}  # what the memory and the file are to be, by the count that the guest said
        self.kept = os.environ.get("SOAK_SANDBOX", "")
        self.ref = self.kept or NAME
        self.since = time.time()

    def begin(self) -> tuple[Guest, dict[str, Any]]:
        """A running guest, and what it said last."""
        known = {info.name: info for info in self.client.list()}
        if self.kept in known and known[self.kept].state is not SandboxState.EXITED:
            if known[self.kept].state is SandboxState.SUSPENDED:
                self.client.resume(self.ref)
            guest = Guest(self.client.attach(self.ref))
            return guest, guest.ask()
        if self.ref in known:  # of a soak that was killed, or whose guest was
            self.client.remove(self.ref, force=True)
        if IMAGE not in {image.name.partition(":")[0] for image in self.client.images()}:
            print(f"building the image {IMAGE}", flush=True)
            self.client.build_image(IMAGE, PACKAGES)
        command = ["python3", "-c", GUEST, str(setting("MEMORY_MIB", 8)), str(setting("DISK_MIB", 4))]
        self.client.start(self.client.create(SandboxSpec(image=IMAGE, name=self.ref, command=command, stdin=True)).id)
        guest = Guest(self.client.attach(self.ref, logs=True))
        up = guest.hear()
        return guest, {"pid": up["up"], "count": 0, "right": True, "next": up["next"]}

    def generation(self, guest: Guest, last: dict[str, Any]) -> tuple[Guest, dict[str, Any]]:
        """Asleep and awake once; the guest, and what it says then.

        Where the emulated host dies meanwhile (QEMU's own faults; docs/design/0003) the sandbox goes on from its last
        snapshot, as it should: that is checked, too.
        """
        first, newest = last["count"] + 1, last["count"] + 1
        try:
            self.sleep_and_wake()
            said = guest.ask()
        except PerdureError as error:
            if below.status(self.client.home).answers:
                raise
            print(f"the emulated host died: {error}", flush=True)
            self.figures.hosts_lost += 1
            guest.close()
            self.client.resume(self.ref)
            guest = Guest(self.client.attach(self.ref, logs=False))
            said, first = guest.ask(), last["count"]  # the suspend may not have been durable
        figures = self.figures
        if not said["right"]:
            figures.wrong(
                f"generation {said['count']}: memory or file is not what the guest wrote down: {said['found']}"
            )
        is_due = first <= said["count"] <= newest
        if said["pid"] != last["pid"] or not is_due or said["found"] != self.nexts.get(said["count"] - 1):
            figures.wrong(f"generation {said['count']}: not where generation {said['count'] - 1} ended")
        self.nexts[said["count"]] = said["next"]
        return guest, said

    def fork(self, last: dict[str, Any]) -> None:
        """A fork of a live checkpoint is where the sandbox is, which does not notice."""
        (twin,) = self.client.fork(self.client.checkpoint(self.ref).digest)
        guest = Guest(self.client.attach(twin.id, logs=False))
        self.check_next(last, guest.ask(), "its fork")
        guest.close()
        self.client.remove(twin.id, force=True)

    def roll_back(self, guest: Guest, last: dict[str, Any]) -> tuple[Guest, dict[str, Any]]:
        """What it does after a checkpoint is undone, in memory and on its disk; the guest, and what it says then."""
        checkpoint = self.client.checkpoint(self.ref).digest
        self.check_next(last, guest.ask(), "after a live checkpoint")
        guest.close()
        self.client.resume(self.ref, snapshot=checkpoint)
        guest = Guest(self.client.attach(self.ref, logs=False))
        said = guest.ask()
        self.check_next(last, said, "taken back")
        self.nexts[said["count"]] = said["next"]
        return guest, said

    def check_next(self, last: dict[str, Any], said: dict[str, Any], what: str) -> None:
        """It goes on right behind what was said last."""
        if not said["right"] or said["found"] != last["next"] or said["pid"] != last["pid"]:
            self.figures.wrong(f"generation {last['count']}, {what}: not where that ended: {said}")
        if said["count"] != last["count"] + 1:
            self.figures.wrong(f"generation {last['count']}, {what}: it has seen {said['count']}")

    def sleep_and_wake(self) -> None:
        figures = self.figures
        figures.suspend_s.append(timed(lambda: self.client.suspend(self.ref)))
        figures.stored_bytes.append(self.client.snapshots(self.ref)[-1].stored_bytes)
        figures.layers.append(self.layers())
        figures.resume_s.append(timed(lambda: self.client.resume(self.ref)))

    def layers(self) -> int:
        """Of the newest snapshot, in its longer space."""
        info = self.client.get(self.ref).snapshot
        assert info is not None
        (newest,) = [one for one in self.client.store.list(sandbox=self.ref) if one.digest == info.digest]
        return max(newest.memory_layers, newest.disk_layers)

    def give_up_old(self) -> None:
        for old in self.client.snapshots(self.ref)[: -setting("SNAPSHOTS", 10)]:
            self.client.store.remove(old.digest)

    def verify(self, what: str, *, thorough: bool = False) -> None:
        found = self.client.store.verify(self.ref if thorough else None, thorough=thorough)
        for finding in found.findings:
            self.figures.wrong(f"{what}: {finding.object}: {finding.problem}")

    def compactions(self) -> int:
        return Counter(event.kind for event in self.client.events(follow=False, since=self.since))["sandbox.compacted"]

    def run(self) -> int:
        count, limit_s = setting("GENERATIONS", 200), setting("SECONDS", 1 << 31)
        every, forks, roll_backs = setting("VERIFY", 50), setting("FORKS", 9), setting("ROLL_BACKS", 13)
        began = time.monotonic()
        guest, said = self.begin()
        self.nexts[said["count"]] = said["next"]
        before = Node(self.client)
        for number in range(1, count + 1):
            guest, said = self.generation(guest, said)
            if forks and number % forks == 0:
                self.fork(said)
            if roll_backs and number % roll_backs == 0:
                guest, said = self.roll_back(guest, said)
            self.give_up_old()
            if number % SHOWN_EVERY == 0 or number == count:
                self.show(number, said, time.monotonic() - began)
            if number % every == 0 and number < count:
                self.verify(f"after {number} generations")
            if time.monotonic() - began > limit_s:
                break
        self.client.suspend(self.ref)
        settle(lambda: self.layers() <= 8 or self.compaction_is_off())
        if not self.compaction_is_off() and self.layers() > 8:
            self.figures.wrong(f"its chain has {self.layers()} layers {SETTLED_S:g} s after the last suspend")
        self.verify("at the end")
        self.verify("restored for real", thorough=True)
        self.client.resume(self.ref)
        last, said = said, guest.ask()
        if not said["right"] or said["found"] != last["next"]:
            self.figures.wrong("the last resume: not what it was")
        status, _, error = self.client.run(self.ref, ExecSpec(command=["true"]))
        if status != 0:
            self.figures.wrong(f"an exec after it all failed: {error!r}")
        self.summary(said, time.monotonic() - began, before)
        if self.kept:
            self.client.suspend(self.ref)
        guest.close()
        if not self.kept:
            self.client.remove(self.ref, force=True)
        return 1 if self.figures.problems else 0

    @staticmethod
    def compaction_is_off() -> bool:
        return os.environ.get("PERDURE_COMPACTION") == "off"

    # -- words --------------------------------------------------------------------------------------------------------
    def show(self, number: int, said: dict[str, Any], took_s: float) -> None:
        figures = self.figures
        print(
            f"{number:4} generations (its {said['count']}th) in {took_s:.0f} s: suspend {figures.suspend_s[-1]:.2f} s, "
            f"resume {figures.resume_s[-1]:.2f} s, {figures.stored_bytes[-1] / 1e6:.2f} MB stored, "
            f"{figures.layers[-1]} layers, {self.compactions()} compactions, {len(figures.problems)} wrong",
            flush=True,
        )

    def summary(self, said: dict[str, Any], took_s: float, before: Node) -> None:
        figures, after = self.figures, Node(self.client)
        print(f"\n{len(figures.suspend_s)} generations in {took_s:.0f} s; the guest has seen {said['count']}")
        for what, values, unit in (
            ("suspend", figures.suspend_s, "s"),
            ("resume", figures.resume_s, "s"),
            ("stored", [size / 1e6 for size in figures.stored_bytes], "MB"),
            ("layers", figures.layers, ""),
        ):
            spread = sorted(values)
            print(
                f"  {what:8} min {spread[0]:.2f}, median {statistics.median(spread):.2f}, "
                f"95 % {spread[int(0.95 * (len(spread) - 1))]:.2f}, max {spread[-1]:.2f} {unit}"
            )
        half = len(figures.resume_s) // 2
        if half:
            first, last = (statistics.median(part) for part in (figures.resume_s[:half], figures.resume_s[half:]))
            print(f"  resume   median of the first half {first:.2f} s, of the second {last:.2f} s")
        print(f"  compactions by itself: {self.compactions()}")
        print(f"  node: {before} -> {after}")
        if figures.hosts_lost:
            print(f"  emulated hosts that died meanwhile: {figures.hosts_lost}")
        print(f"  wrong: {len(figures.problems)}")
        for problem in figures.problems:
            print(f"    {problem}")


class Node:
    """What the node holds at a moment."""

    def __init__(self, client: NodeClient) -> None:
        pid = client.system()["pid"]
        status = Path(f"/proc/{pid}/status").read_text()
        self.rss_mb = int(status.partition("VmRSS:")[2].split()[0]) / 1e3
        self.descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        blobs = Path(client.system()["home"]) / "store" / "blobs" / "sha256"
        self.store_mb = sum(path.stat().st_size for path in blobs.iterdir()) / 1e6

    def __str__(self) -> str:
        return f"{self.rss_mb:.0f} MB, {self.descriptors} descriptors, store {self.store_mb:.1f} MB"


def timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def settle(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SETTLED_S
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.2)


def main() -> int:
    home = Home.find()
    ensure_running(home)
    try:
        return Soak(NodeClient(home)).run()
    except PerdureError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
