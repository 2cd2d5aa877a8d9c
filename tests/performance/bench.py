"""The figures of this project, beside unmodified Firecracker doing the least it can, in one run on one machine.

    make bench          prints a table; writes build/bench.json, bench-environment.json, bench.svg and recovery.svg
    make bench PARTS="log replay"       measures these parts alone; what else is in build/bench.json stays as it is

``build/bench.json`` is a list of {name, value, unit, baseline, ratio, goal, met}: ``baseline`` is the figure that this
one is measured against (null: none), ``ratio`` = value / baseline, ``goal`` a bound on "value" or "ratio" as text
("ratio <= 1.3"), ``met`` what came of it. Nothing is typed in: what could not be measured is not in the list.

The guest has one vCPU and 512 MiB and runs an agent in Python that has taken ten turns and waits for the next
(``workload``). Times are medians of rounds that are measured in turn with those they are compared with. Times of ours
are taken above the dotted line, those of raw.py in the kernel that runs the VM (``bench_sandboxes``); so are those of
runs on the snapshot road (``bench_recovery``), one of which sleeps a thousand times (``bench_chain``). The pager is
measured natively, beside decompression and memcpy on one core (``bench_pager``), and so are the unpacking of an image
(``bench_unpack``), the context log on both databases (``bench_log``), the replay road, beside DBOS (``bench_replay``),
runs that sleep (``bench_sleep``), and the gateway, beside LiteLLM's proxy (``bench_gateway``) and over 10,000 turns
(``gateway_memory``). What is left whole by deaths of a server is counted, not timed (``bench_crash``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bench_chain
import bench_crash
import bench_gateway
import bench_log
import bench_pager
import bench_recovery
import bench_replay
import bench_sandboxes
import bench_sleep
import bench_unpack
import curves
import gateway_memory
import picture
from report import HEAD, MEGABYTE, Report, read, write
from unmodified import Raw
from workload import AGENT, DISK_MIB, IMAGE, MEMORY_MIB, PACKAGES, TURNS

from perdure import __version__
from perdure.client.node import NodeClient, ensure_running
from perdure.execution.images.image import Image
from perdure.execution.images.library import ImageLibrary
from perdure.execution.machine.remote import Launcher
from perdure.host import assets as host_assets
from perdure.host import below
from perdure.host.assets import Assets
from perdure.host.below import BelowStatus
from perdure.host.paths import Home

ROOT = Path(__file__).parents[2]


def main(parts: Sequence[str]) -> int:
    """``parts``: those that are measured; none: all."""
    if unknown := set(parts) - {*NATIVE, *IN_MACHINES}:
        print(f"no such part: {', '.join(unknown)}; there are {', '.join((*NATIVE, *IN_MACHINES))}", file=sys.stderr)
        return 2
    build = ROOT / "build"
    surroundings = build / "bench-environment.json"
    home = Home(build / "bench-home", Home.find().cache).make()
    os.environ |= {"PERDURE_HOME": str(home.root), "PERDURE_CACHE": str(home.cache)}
    _clear(home)
    report, took_s = Report(), dict[str, int]()
    try:
        assets = host_assets.ensure(home, _tell)
        print(HEAD)
        for part, add in NATIVE.items():
            if part in (parts or NATIVE):
                with _timed(part, took_s):
                    add(report)
        if wanted := [part for part in IN_MACHINES if part in (parts or IN_MACHINES)]:
            _in_machines(report, home, assets, wanted, took_s)
        if wanted or not surroundings.exists():
            surroundings.write_text(json.dumps(_environment(home, assets), indent=1) + "\n")
    finally:
        _clear(home)
        _keep(build, report, whole=not parts and len(took_s) == len(NATIVE) + len(IN_MACHINES))
    print("took: " + ", ".join(f"{part} {seconds} s" for part, seconds in took_s.items()))
    return 0


def _keep(build: Path, report: Report, *, whole: bool) -> None:
    """Write what was measured, also where a part after it failed, and the pictures. ``whole``: nothing else stays."""
    measured, figures = {figure.name for figure in report.figures}, report.figures
    if not whole:
        figures = [figure for figure in read(build / "bench.json") if figure.name not in measured] + figures
    write(build / "bench.json", figures)
    if (surroundings := build / "bench-environment.json").exists():
        environment = json.loads(surroundings.read_text())
        (build / "bench.svg").write_text(picture.draw(figures, environment))
        (build / "recovery.svg").write_text(curves.draw(figures, environment))
    missed = [figure.name for figure in report.figures if figure.met is False]
    print(f"\n{len(report.figures)} figures in {build / 'bench.json'}; goals not met: {', '.join(missed) or 'none'}")


@contextlib.contextmanager
def _timed(part: str, took_s: dict[str, int]) -> Iterator[None]:
    began = time.monotonic()
    yield
    took_s[part] = round(time.monotonic() - began)
    print(f"  {part} took {took_s[part]} s", file=sys.stderr)


def _in_machines(report: Report, home: Home, assets: Assets, parts: Sequence[str], took_s: dict[str, int]) -> None:
    address = below.ensure(home, assets, _tell)
    image = _image(home)
    status = below.status(home)
    if status.emulated:
        _emulated_host(report, status)
    client, launcher = NodeClient(home), Launcher(address)
    if {"sandboxes", "recovery"} & set(parts):
        raw = Raw(home, assets, launcher, image)
        _beside_raw(report, home, client, launcher, raw, parts, took_s)
    if "chain" in parts:
        ensure_running(home)
        with _timed("chain", took_s):
            bench_chain.add(report, bench_chain.measure(home, client))


def _beside_raw(
    report: Report,
    home: Home,
    client: NodeClient,
    launcher: Launcher,
    raw: Raw,
    parts: Sequence[str],
    took_s: dict[str, int],
) -> None:
    """What is measured beside raw.py, whose figures are those of all its rounds."""
    found = times = None
    try:
        raw.boot(report)
        ensure_running(home)
        if "sandboxes" in parts:
            with _timed("sandboxes", took_s):
                found = bench_sandboxes.measure(report, home, client, launcher, raw)
        if "recovery" in parts:
            with _timed("recovery", took_s):
                times = bench_recovery.measure(home, client, launcher, raw)
    finally:  # what was measured is told, also where the part after it failed
        emulated = below.status(home).emulated
        if found is not None or times is not None:
            raw.add(report)
        if found is not None:
            bench_sandboxes.add(report, found, emulated=emulated)
        if times is not None:
            bench_recovery.add(report, times, emulated=emulated)
        raw.close()


def _emulated_host(report: Report, status: BelowStatus) -> None:
    report.add("emulated host: its kernel's own boot", status.kernel_boot_s, "s")
    report.add(
        "emulated host: start to a launcher that answers",
        status.launcher_boot_s,
        "s",
        over="emulated host: its kernel's own boot",
        goal="ratio <= 2",
    )


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


def _pager(report: Report) -> None:
    """The pager by itself on this machine, below no emulation."""
    best = bench_pager.measure()
    report.add(bench_pager.BASELINE, best.baseline / MEGABYTE, "MB/s")
    for name, rate in best.rates.items():
        report.add(f"pager, natively: {name}", rate / MEGABYTE, "MB/s", over=bench_pager.BASELINE, goal="ratio >= 0.8")


def _environment(home: Home, assets: Assets) -> dict[str, Any]:
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
    address = below.ensure(home, assets)
    asyncio.run(Launcher(address).run(["uname", "-r"], output=said.extend))
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "kernel": platform.release(),
        "distribution": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "load": list(os.getloadavg()),
        "machine": "emulated host (QEMU TCG)" if below.status(home).emulated else "KVM",
        "kernel_below_the_line": said.decode().strip(),
        "guest_kernel": assets.kernel_release,
        "firecracker": assets.firecracker_version,
        "python": platform.python_version(),
        "perdure": __version__,
        "guest": {
            "vcpus": 1,
            "memory_mib": MEMORY_MIB,
            "disk_mib": DISK_MIB,
            "packages": PACKAGES,
            "turns": TURNS,
            "agent": AGENT,
        },
        "rounds": bench_sandboxes.ROUNDS,
    }


def _gateway(report: Report) -> None:
    bench_gateway.add(report)
    gateway_memory.add(report)


NATIVE: dict[str, Callable[[Report], None]] = {
    "pager": _pager,
    "unpack": bench_unpack.add,
    "log": bench_log.add,
    "replay": bench_replay.add,
    "sleep": bench_sleep.add,
    "gateway": _gateway,
    "crash": bench_crash.add,
}
IN_MACHINES = ("sandboxes", "recovery", "chain")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
