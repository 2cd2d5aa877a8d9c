"""The figures of this project, beside unmodified Firecracker doing the least it can, in one run on one machine.

    make bench          prints a table; writes build/bench.json and build/bench-environment.json

``build/bench.json`` is a list of {name, value, unit, baseline, ratio, goal, met}: ``baseline`` is the figure that this
one is measured against (null: none), ``ratio`` = value / baseline, ``goal`` a bound on "value" or "ratio" as text
("ratio <= 1.3"), ``met`` what came of it. Nothing is typed in: what could not be measured is not in the list.

The guest has one vCPU and 512 MiB and runs an agent in Python that has taken ten turns and waits for the next. Cheap
figures are medians, each of rounds that are measured in turn with those they are compared with. Times of ours are taken
above the dotted line, those of raw.py in the kernel that runs the VM.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perdure import __version__
from perdure.client.node import NodeClient, Session, ensure_running
from perdure.execution.images.image import Image
from perdure.execution.images.library import ImageLibrary
from perdure.execution.machine.configuration import BOOT_ARGS
from perdure.execution.machine.remote import Launcher
from perdure.execution.sandboxes import disk
from perdure.host import assets as host_assets
from perdure.host import below
from perdure.host.assets import Assets
from perdure.host.paths import Home
from perdure.model import SandboxSpec

ROOT = Path(__file__).parents[2]
IMAGE = "perdure-bench"
PACKAGES = ["python3-minimal", "libpython3-stdlib"]
MEMORY_MIB = 512
DISK_MIB = 512
TURNS = 10
ROUNDS = 5
MEGABYTE = 1e6  # the goals count decimal megabytes
COLD = "raw Firecracker: cold boot to a program's first line"
DIFF = "raw Firecracker: diff snapshot"
RESTORE = "raw Firecracker: raw-file restore to first answer"
PHASES = ("stand", "prepare", "keeper", "restore", "guest", "wake")  # of a resume, as ``fcrun inspect`` shows them
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
# An agent between turns: its libraries loaded, the conversation in memory, blocked on its next input.
AGENT = """
import hashlib, http.client, json, sys, urllib.request
messages = []
print("ready", flush=True)
for line in sys.stdin:
    context = [hashlib.sha256(b"%d %d" % (len(messages), n)).hexdigest() for n in range(64)]
    messages.append({"role": "user", "content": line, "context": context})
    text = json.dumps(messages)
    print(len(messages), hashlib.sha256(text.encode()).hexdigest(), flush=True)
"""


@dataclass(frozen=True)
class Figure:
    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    goal: str | None = None
    met: bool | None = None


class Report:
    """The figures in the order in which they were measured."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def add(self, name: str, value: float, unit: str, *, over: str = "", goal: str = "") -> None:
        """One figure. ``over`` names the figure it is measured against; ``goal`` is "ratio <= N" or "value <= N"."""
        baseline = self.value(over) if over else None
        ratio = value / baseline if baseline else None
        met = None
        if goal:
            what, sign, bound = goal.split()
            measured = {"value": value, "ratio": ratio}[what]
            assert measured is not None and sign in ("<=", ">=")
            met = measured <= float(bound) if sign == "<=" else measured >= float(bound)
        self.figures.append(
            Figure(
                name,
                round(value, 4),
                unit,
                None if baseline is None else round(baseline, 4),
                None if ratio is None else round(ratio, 3),
                goal or None,
                met,
            )
        )
        print(_row(self.figures[-1]), flush=True)

    def value(self, name: str) -> float:
        return next(figure.value for figure in self.figures if figure.name == name)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps([asdict(figure) for figure in self.figures], indent=1) + "\n")


def _row(figure: Figure) -> str:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    baseline = "" if figure.baseline is None else f"{figure.baseline:.3f}"
    verdict = {True: "met", False: "NOT MET", None: ""}[figure.met]
    value = f"{figure.value:10.3f} {figure.unit:3}"
    return f"{figure.name:54} {value} {baseline:>9} {ratio:>7}  {figure.goal or '':15} {verdict}"


def main() -> int:
    build = ROOT / "build"
    home = Home(build / "bench-home", Home.find().cache).make()
    os.environ |= {"PERDURE_HOME": str(home.root), "PERDURE_CACHE": str(home.cache)}
    _clear(home)
    report = Report()
    try:
        assets = host_assets.ensure(home, _tell)
        address = below.ensure(home, assets, _tell)
        image = _image(home)
        print(f"\n{'':54} {'value':>10} {'':3} {'baseline':>9} {'ratio':>7}  goal")
        status = below.status(home)
        if status.emulated:
            report.add("emulated host: its kernel's own boot", status.kernel_boot_s, "s")
            report.add(
                "emulated host: start to a launcher that answers",
                status.launcher_boot_s,
                "s",
                over="emulated host: its kernel's own boot",
                goal="ratio <= 2",
            )
        raw = Raw(home, assets, Launcher(address), image)
        try:
            raw.boot(report)
            ensure_running(home)
            cold, warm = _runs(raw)
            found = _suspends(NodeClient(home), Launcher(address), raw)
        finally:
            raw.close()
        raw.add(report)
        report.add("fcrun run, cold (its template is made)", cold, "s", over=COLD)
        report.add("fcrun run, warm", warm, "s", over=RESTORE, goal="ratio <= 1.5")
        report.add("fcrun run, warm, beside raw cold boot", warm, "s", over=COLD, goal="ratio <= 0.125")
        report.add("suspend: vCPUs stand still", found["pause_s"], "s", over=DIFF, goal="ratio <= 1.2")
        goal = "ratio <= 3" if status.emulated else "value <= 1"
        report.add("suspend requested to durable, first", found["first"]["took_s"], "s", over=DIFF)
        report.add("suspend requested to durable, later", found["took_s"], "s", over=DIFF, goal=goal)
        report.add("resume requested to first answer", found["answer"], "s", over=RESTORE, goal="ratio <= 1.3")
        for name in PHASES:
            report.add(f"resume, of it: {name}", found[f"{name}_s"], "s")
        megabytes = found["first"]["stored_bytes"] / MEGABYTE
        report.add("stored by the first suspend, beyond the template", megabytes, "MB", goal="value <= 14")
        report.add("stored by each later suspend", found["stored_bytes"] / MEGABYTE, "MB", goal="value <= 3")
        report.add(f"stored by {ROUNDS + 1} suspends", found["stored"] / MEGABYTE, "MB")
        report.add("keeper of a started sandbox, unique memory", found["unique, started"], "MB", goal="value <= 24")
        resumed = "keeper and pager of a resumed sandbox, unique memory"
        report.add(resumed, found["unique, resumed"], "MB", goal="value <= 24")
        (build / "bench-environment.json").write_text(json.dumps(_environment(home, assets, status.emulated), indent=1))
    finally:
        _clear(home)
    report.write(build / "bench.json")
    missed = [figure.name for figure in report.figures if figure.met is False]
    print(f"\n{len(report.figures)} figures in {build / 'bench.json'}; goals not met: {', '.join(missed) or 'none'}")
    return 0


def _tell(what: str, done: int, total: int) -> None:
    if total in (0, done):
        print(f"  {what}", file=sys.stderr)


def _clear(home: Home) -> None:
    """End all, and forget what a cold start must not find. Image and assets stay: they are not what is measured."""
    if home.socket("fcrund").exists():
        client = NodeClient(home)
        try:
            for info in client.list():
                client.remove(info.id, force=True)
            client.shutdown()
        except Exception as error:
            print(f"  the former node: {error}", file=sys.stderr)
    below.stop(home)
    for folder in (home.sandboxes, home.templates, home.store):
        shutil.rmtree(folder, ignore_errors=True)
    home.make()


def _image(home: Home) -> Image:
    library = ImageLibrary(home.images)
    if f"{IMAGE}:latest" not in {image.name for image in library.list()}:
        library.build_from_packages(IMAGE, PACKAGES, progress=_tell)
    return library.get(IMAGE)


class Raw:
    """Firecracker by itself: raw.py, below the line. ``add`` reports what its rounds took."""

    def __init__(self, home: Home, assets: Assets, launcher: Launcher, image: Image) -> None:
        self._launcher = launcher
        self._rounds: list[dict[str, float]] = []
        self._overlay = home.root / "raw-overlay"
        disk.make(home.root / "disks", DISK_MIB, self._overlay)
        self._plan = {
            "firecracker": str(assets.firecracker),
            "kernel": str(assets.vmlinux),
            "initrd": str(assets.guest_initrd),
            "boot_args": BOOT_ARGS,
            "vcpus": 1,
            "memory_mib": MEMORY_MIB,
            "image": str(image.squashfs),
            "overlay": str(self._overlay),
            "folder": f"/run/perdure/bench-{os.getpid()}",
            "command": ["echo", "up"],
            "agent": ["python3", "-c", AGENT],
            "environment": ENVIRONMENT,
            "turns": TURNS,
        }

    def boot(self, report: Report) -> None:
        times = self._step("boot")
        report.add("raw Firecracker: cold boot to guestd", times["cold boot"], "s")
        report.add(COLD, times["cold run"], "s")
        report.add("raw Firecracker: full snapshot", times["full snapshot"], "s")

    def round(self) -> None:
        self._rounds.append(self._step("round"))

    def add(self, report: Report) -> None:
        def median(name: str) -> float:
            return statistics.median(times[name] for times in self._rounds)

        report.add(DIFF, median("diff snapshot"), "s")
        report.add("raw Firecracker: diff snapshot, bytes", median("diff bytes") / MEGABYTE, "MB")
        report.add("raw Firecracker: raw-file restore to guestd", median("restore, guestd"), "s")
        report.add(RESTORE, median("restore"), "s")

    def close(self) -> None:
        self._step("clear")
        self._overlay.unlink()

    def _step(self, step: str) -> dict[str, float]:
        packages = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
        environment = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *packages]),
        }
        command = [sys.executable, "-P", str(Path(__file__).with_name("raw.py")), step, json.dumps(self._plan)]
        said = bytearray()
        status = asyncio.run(self._launcher.run(command, env=environment, output=said.extend))
        if status != 0:
            raise RuntimeError(f"raw.py {step} ended with {status}: {said.decode(errors='replace')[-2000:]}")
        times: dict[str, float] = json.loads(said.decode().splitlines()[-1])
        return times


def _runs(raw: Raw) -> tuple[float, float]:
    """``fcrun run``, cold and warm: from the start of the command to the program's first line on its stdout."""
    cold = _run()
    warm = []
    for _ in range(ROUNDS):
        raw.round()
        warm.append(_run())
    return cold, statistics.median(warm)


def _run() -> float:
    command = [sys.executable, "-m", "perdure.cli.fcrun", "run", "--rm", "-m", f"{MEMORY_MIB}m", IMAGE, "echo", "up"]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        took = time.monotonic() - began
    if process.returncode != 0 or line != b"up\n":
        raise RuntimeError(f"fcrun run ended with {process.returncode} after {line!r}")
    return took


class Talk:
    """Lines to and from the agent, each with the time at which it came."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lines = self._read()

    def _read(self) -> Iterator[float]:
        rest = b""
        for _, data in self._session.outputs():
            *lines, rest = (rest + data).split(b"\n")
            now = time.monotonic()
            for _ in lines:
                yield now

    def say(self, line: str) -> None:
        self._session.send_stdin(line.encode() + b"\n")

    def hear(self) -> float:
        return next(self._lines)


@contextmanager
def _agent(client: NodeClient) -> Iterator[tuple[str, Talk]]:
    """A sandbox whose agent has taken its turns."""
    spec = SandboxSpec(
        image=IMAGE,
        command=["python3", "-c", AGENT],
        stdin=True,
        memory_mib=MEMORY_MIB,
        disk_mib=DISK_MIB,
    )
    ref = client.start(client.create(spec).id).id
    try:
        with client.attach(ref, logs=True) as session:
            talk = Talk(session)
            talk.hear()
            for turn in range(TURNS):
                talk.say(f"turn {turn}")
                talk.hear()
            yield ref, talk
    finally:
        client.remove(ref, force=True)


def _suspends(client: NodeClient, launcher: Launcher, raw: Raw) -> dict[str, Any]:
    """Suspend and resume, each resume followed by one more turn, beside as many rounds of raw.py."""
    found: dict[str, Any] = {}
    with _agent(client) as (ref, talk):
        found["unique, started"] = _unique_memory(client, launcher, ref)
        found["first"] = _suspend(client, ref)
        laters, answers, parts = [], [], []
        for turn in range(ROUNDS):
            raw.round()
            answers.append(_resume(client, ref, talk, f"after {turn}"))
            parts.append(client.get(ref).machine["phases"])
            if turn == 0:
                found["unique, resumed"] = _unique_memory(client, launcher, ref)
            laters.append(_suspend(client, ref))
        found["stored"] = client.get(ref).stored_bytes
    for name in PHASES:
        found[f"{name}_s"] = _median(parts, f"{name}_s")
    return found | {"answer": statistics.median(answers)} | {name: _median(laters, name) for name in laters[0]}


def _median(figures: list[dict[str, Any]], name: str) -> float:
    return statistics.median(float(figure[name]) for figure in figures)


def _suspend(client: NodeClient, ref: str) -> dict[str, float]:
    began = time.monotonic()
    info = client.suspend(ref)
    return {"took_s": time.monotonic() - began, "pause_s": info.pause_s, "stored_bytes": info.stored_bytes}


def _resume(client: NodeClient, ref: str, talk: Talk, word: str) -> float:
    """From the request to the answer of the workload, which is asked something as soon as it runs."""
    talk.say(word)
    failed: list[BaseException] = []

    def resume() -> None:
        try:
            client.resume(ref)
        except BaseException as error:
            failed.append(error)

    began = time.monotonic()
    thread = threading.Thread(target=resume)
    thread.start()
    answered = talk.hear()
    thread.join()
    if failed:
        raise failed[0]
    return answered - began


def _unique_memory(client: NodeClient, launcher: Launcher, ref: str) -> float:
    """Private pages of the helper processes of one sandbox (proc_pid_smaps(5)), in MB."""
    machine = client.get(ref).machine
    pids = [pid for pid in (machine.get("keeper_pid"), machine.get("pager_pid")) if pid]
    said = bytearray()
    asyncio.run(launcher.run(["cat", *(f"/proc/{pid}/smaps_rollup" for pid in pids)], output=said.extend))
    lines = [line.split() for line in said.decode().splitlines() if line.startswith(("Private_Clean", "Private_Dirty"))]
    private = sum(int(words[1]) for words in lines)
    return private * 1024 / MEGABYTE


def _environment(home: Home, assets: Assets, emulated: bool) -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    said = bytearray()
    asyncio.run(Launcher(below.ensure(home, assets)).run(["uname", "-r"], output=said.extend))
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "kernel": platform.release(),
        "distribution": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "load": list(os.getloadavg()),
        "machine": "emulated host (QEMU TCG)" if emulated else "KVM",
        "kernel_below_the_line": said.decode().strip(),
        "guest_kernel": assets.kernel_release,
        "firecracker": assets.firecracker_version,
        "python": platform.python_version(),
        "perdure": __version__,
        "guest": {"vcpus": 1, "memory_mib": MEMORY_MIB, "disk_mib": DISK_MIB, "packages": PACKAGES},
    }


if __name__ == "__main__":
    sys.exit(main())
