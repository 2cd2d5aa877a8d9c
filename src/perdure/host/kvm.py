"""Whether KVM really boots a guest here, found out by booting one.

``/dev/kvm`` may open although no stock kernel boots (nested under a hypervisor that lends only a part of it, as
kvm_pvm does): the guest then stands still in its first instructions. So Firecracker is run with the kernel and no
disk; a kernel that works panics within a second, because it finds no root. The verdict is kept for this boot.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from perdure.host.assets import Assets
from perdure.host.machine import boot_id
from perdure.host.paths import Home
from perdure.host.progress import Progress, silent
from perdure.host.vault import write_durably
from perdure.linux.readiness import readable

DEVICE = Path("/dev/kvm")
TIMEOUT_S = 5.0
REACHED = b"Kernel panic - not syncing: VFS"  # all of the kernel's own boot lies behind it
BOOT_ARGUMENTS = "console=ttyS0 reboot=k panic=-1 8250.nr_uarts=1 loglevel=4"


@dataclass(frozen=True)
class Verdict:
    """``boots``, and in words why or how fast."""

    boots: bool
    reason: str


def boots(home: Home, assets: Assets, progress: Progress | None = None) -> bool:
    """Whether KVM is to be used on this machine."""
    return verdict(home, assets, progress).boots


def verdict(home: Home, assets: Assets, progress: Progress | None = None, *, again: bool = False) -> Verdict:
    """The verdict of this boot, found out now if it is not known. Takes up to ``TIMEOUT_S`` then.

    ``again``: also where it was bad: the machine may only have been too busy.
    """
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Verdict(False, _why_not(DEVICE))
    path = home.cache / "kvm.json"
    key = f"{boot_id()} {assets.firecracker_version} {assets.kernel_release}"
    try:
        known = json.loads(path.read_text())
        if known["key"] == key and (known["boots"] or not again):
            return Verdict(bool(known["boots"]), str(known["reason"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    what = "trying whether KVM boots a guest"
    (progress or silent)(what, 0, 0)
    found = try_boot(assets.firecracker, assets.vmlinux)
    write_durably(path, json.dumps({"key": key, "boots": found.boots, "reason": found.reason}).encode())
    (progress or silent)(what, 1, 1)
    return found


def try_boot(firecracker: Path, kernel: Path, timeout_s: float = TIMEOUT_S) -> Verdict:
    """Boot the kernel to the end of its own start; whether it got there in time."""
    configuration = {
        "boot-source": {"kernel_image_path": str(kernel), "boot_args": BOOT_ARGUMENTS},
        "drives": [],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
    }
    with tempfile.TemporaryDirectory(prefix="perdure-kvm-") as folder:
        file = Path(folder) / "machine.json"
        file.write_text(json.dumps(configuration))
        command = [str(firecracker), "--no-api", "--config-file", str(file)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        began = time.monotonic()
        try:
            console = _read_until(process, REACHED, began + timeout_s)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    took_s = time.monotonic() - began
    if REACHED in console:
        return Verdict(True, f"a guest booted in {took_s:.2f} s")
    if process.returncode != -signal.SIGKILL:
        last = console.decode(errors="replace").strip().splitlines() or ["no message"]
        return Verdict(False, f"Firecracker ended: {last[-1].strip()}")
    return Verdict(False, f"a guest did not boot within {timeout_s:.0f} s, although {DEVICE} opens")


def _read_until(process: subprocess.Popen[bytes], wanted: bytes, deadline: float) -> bytes:
    assert process.stdout is not None
    console = b""
    while wanted not in console and (left_s := deadline - time.monotonic()) > 0:
        if not readable(process.stdout.fileno(), left_s):
            break
        data = os.read(process.stdout.fileno(), 65536)
        if not data:
            process.wait(timeout=1)
            break
        console += data
    return console


def _why_not(device: Path) -> str:
    if not device.exists():
        return f"there is no {device}"
    return f"user {os.geteuid()} may not open {device}"
