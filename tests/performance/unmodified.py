"""Unmodified Firecracker, from above the dotted line: ``raw.py`` runs below it, and tells what its steps took."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
from pathlib import Path

from report import MEGABYTE, Report
from workload import AGENT, DISK_MIB, MEMORY_MIB, TURNS

from perdure.execution.images.image import Image
from perdure.execution.machine.configuration import BOOT_ARGS
from perdure.execution.machine.remote import Launcher
from perdure.execution.sandboxes import disk
from perdure.host.assets import Assets
from perdure.host.paths import Home

ROOT = Path(__file__).parents[2]
COLD = "raw Firecracker: cold boot to a program's first line"
DIFF = "raw Firecracker: diff snapshot"
RESTORE = "raw Firecracker: raw-file restore to first answer"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


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
