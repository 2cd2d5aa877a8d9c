"""What this machine offers, as findings: what was found, whether that is good, and what to do about it.

A probe finds out by trying, where trying is cheap and leaves nothing behind.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from perdure.errors import PerdureError
from perdure.host import assets as host_assets
from perdure.host import kvm
from perdure.host.assets import Assets
from perdure.host.emulated import find_programs
from perdure.host.machine import require_root, require_supported
from perdure.host.paths import Home
from perdure.host.progress import Progress, silent
from perdure.linux import cgroup, reflink, userfaultfd

SPACE_NEEDED_BYTES = 1 << 30  # an image, a template and some snapshots
SPACE_WANTED_BYTES = 5 << 30
CGROUP = Path(cgroup.ROOT)
USERFAULTFD = Path("/dev/userfaultfd")  # Linux 6.1
USERFAULTFD_SETTING = Path("/proc/sys/vm/unprivileged_userfaultfd")
JAIL = ("unshare", "--mount", "--pid", "--net", "--fork", "true")  # util-linux, which is essential in Debian
JAIL_TIMEOUT_S = 10.0
PROGRAMS = {  # program: (package, what it is for, needed at all)
    "mksquashfs": ("squashfs-tools", "images", True),
    "mke2fs": ("e2fsprogs", "the disks of sandboxes", True),
    "depmod": ("kmod", "the guest's kernel modules", True),
    "lz4": ("lz4", "unpacking the kernels of Debian 12", False),
    "mmdebstrap": ("mmdebstrap", "images from Debian packages", False),
    "buildah": ("buildah", "images from Dockerfiles", False),
}


class Level(StrEnum):
    """How good a finding is."""

    OK = "ok"
    NOTE = "note"  # works, with less
    PROBLEM = "problem"  # microVMs do not run until it is solved


@dataclass(frozen=True)
class Finding:
    """One answer. ``advice`` says what to do; empty where there is nothing to do."""

    name: str
    level: Level
    found: str
    advice: str = ""


def examine(home: Home, *, thorough: bool = False, progress: Progress = silent) -> list[Finding]:
    """Every finding. ``thorough`` hashes the assets again, and tries KVM again where it did not boot a guest; else that
    is tried once a boot of this machine. It may take some seconds."""
    kind = system()
    if kind.level is Level.PROBLEM:
        return [kind]
    found, assets = parts(home, thorough=thorough)
    accelerated = virtualization(home, assets, progress, again=thorough)
    return [
        kind,
        resources(),
        rights(),
        found,
        accelerated,
        emulation(needed=accelerated.level is not Level.OK),
        page_faults(needed=accelerated.level is Level.OK),
        jails(needed=accelerated.level is Level.OK),
        control_groups(needed=accelerated.level is Level.OK),
        clones(home.root),
        *(space(name, folder) for name, folder in (("state folder", home.root), ("cache", home.cache))),
        programs(),
    ]


def system() -> Finding:
    """Operating system and architecture."""
    try:
        kind = require_supported()
    except PerdureError as error:
        return Finding("system", Level.PROBLEM, error.message, error.hint)
    found = f"Linux {platform.release()} on {kind.architecture}, {_pretty_name()}"
    if kind.distribution not in ("debian", "ubuntu"):
        return Finding("system", Level.NOTE, found, "Kernels are fetched with apt: use Debian or Ubuntu.")
    return Finding("system", Level.OK, found)


def resources() -> Finding:
    """Processors and memory."""
    memory_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    found = f"{os.cpu_count()} processors, {memory_mib / 1024:.1f} GiB of memory"
    if memory_mib < 2048:
        return Finding(
            "resources", Level.NOTE, found, "The emulated host takes half of the memory: 4 GiB serve better."
        )
    return Finding("resources", Level.OK, found)


def rights() -> Finding:
    """Whether this user may start machines."""
    try:
        require_root("running microVMs")
    except PerdureError as error:
        return Finding("rights", Level.PROBLEM, error.message, error.hint)
    return Finding("rights", Level.OK, "root")


def parts(home: Home, *, thorough: bool) -> tuple[Finding, Assets | None]:
    """Firecracker, kernel, guestd: whether they are there, and what they were."""
    try:
        assets = host_assets.recorded(home, thorough=thorough)
    except PerdureError as error:
        return Finding("assets", Level.PROBLEM, error.message, error.hint), None
    if assets is None:
        return Finding("assets", Level.NOTE, f"not all in {home.cache} yet", "Run: fcrun setup"), None
    checked = ", every digest checked" if thorough else ""
    found = f"Firecracker {assets.firecracker_version}, Linux {assets.kernel_release} in {home.cache}{checked}"
    return Finding("assets", Level.OK, found), assets


def virtualization(home: Home, assets: Assets | None, progress: Progress = silent, *, again: bool = False) -> Finding:
    """Whether KVM boots a guest (``again``: as ``kvm.verdict`` takes it)."""
    if assets is None:
        device = "opens" if os.access(kvm.DEVICE, os.R_OK | os.W_OK) else "does not open"
        return Finding("KVM", Level.NOTE, f"not tried yet ({kvm.DEVICE} {device})", "Run: fcrun setup")
    verdict = kvm.verdict(home, assets, progress, again=again)
    if verdict.boots:
        return Finding("KVM", Level.OK, verdict.reason)
    advice = "The emulated host serves instead, some forty times slower. Machines with hardware KVM are faster."
    return Finding("KVM", Level.NOTE, verdict.reason, advice)


def emulation(*, needed: bool) -> Finding:
    """QEMU and virtiofsd, which the emulated host is made of."""
    try:
        qemu, virtiofsd = find_programs()
    except PerdureError as error:
        if needed:
            return Finding("emulated host", Level.PROBLEM, error.message, error.hint)
        return Finding("emulated host", Level.OK, "not needed, and not installed")
    kind = "Rust" if virtiofsd.is_rust else "C"
    return Finding("emulated host", Level.OK, f"{qemu}, {virtiofsd.program} ({kind})")


def page_faults(*, needed: bool, device: Path = USERFAULTFD, setting: Path = USERFAULTFD_SETTING) -> Finding:
    """userfaultfd, through which memory is restored lazily."""
    try:
        os.close(userfaultfd.open_descriptor())
    except (OSError, PerdureError) as error:
        if needed:
            return Finding(
                "userfaultfd", Level.PROBLEM, str(error), "Run as root, on a kernel with CONFIG_USERFAULTFD."
            )
        return Finding("userfaultfd", Level.OK, "not usable here, and not needed: the emulated host has its own")
    if needed and not device.exists() and setting.read_text().strip() != "1":
        return Finding(
            "userfaultfd",
            Level.PROBLEM,
            f"there is no {device}, and jailed machines are not root",
            "Use Linux 6.1 or later, or: sysctl vm.unprivileged_userfaultfd=1",
        )
    return Finding("userfaultfd", Level.OK, "opens")


def jails(*, needed: bool, argv: Sequence[str] = JAIL) -> Finding:
    """Whether this user may make the namespaces of a jail (docs/design/0013-isolation.md)."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=JAIL_TIMEOUT_S)
        problem = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1] if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if not problem:
        return Finding("jail", Level.OK, "mount, pid and network namespaces can be made")
    if needed:
        return Finding("jail", Level.PROBLEM, problem, "Run as root; a container needs CAP_SYS_ADMIN (--privileged).")
    return Finding("jail", Level.OK, "not permitted here, and not needed: the emulated host has its own")


def control_groups(*, needed: bool, mount: Path = CGROUP) -> Finding:
    """cgroup v2, by which a sandbox's processes are found and killed together."""
    if (mount / "cgroup.controllers").exists():
        return Finding("cgroup v2", Level.OK, f"at {mount}")
    if not needed:
        return Finding("cgroup v2", Level.OK, "not mounted here, and not needed: the emulated host has its own")
    return Finding(
        "cgroup v2",
        Level.NOTE,
        f"not mounted at {mount}",
        "Snapshots restore slower under cgroup v1. Boot with systemd.unified_cgroup_hierarchy=1.",
    )


def clones(folder: Path) -> Finding:
    """Whether files in the state folder can share blocks."""
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as source, tempfile.TemporaryFile(dir=place) as target:
            source.write(bytes(4096))
            source.flush()
            works = reflink.clone(source.fileno(), target.fileno())
    except OSError as error:
        return Finding("reflink", Level.NOTE, f"{place} cannot be written ({error.strerror})", "Run as root.")
    if works:
        return Finding("reflink", Level.OK, f"{place} shares blocks between files")
    return Finding(
        "reflink", Level.NOTE, f"{place} cannot share blocks: disks are copied", "xfs or btrfs would be faster."
    )


def space(name: str, folder: Path) -> Finding:
    """Free bytes where things are stored."""
    free = shutil.disk_usage(_existing(folder)).free
    found = f"{free / (1 << 30):.1f} GiB free for the {name} {folder}"
    variable = "PERDURE_CACHE" if name == "cache" else "PERDURE_HOME"
    advice = f"Make space, or set {variable} to a folder on another disk."
    if free < SPACE_NEEDED_BYTES:
        return Finding("disk space", Level.PROBLEM, found, advice)
    return Finding("disk space", *((Level.OK, found) if free >= SPACE_WANTED_BYTES else (Level.NOTE, found, advice)))


def programs(find: Callable[[str], str | None] | None = None) -> Finding:
    """The programs of other packages that some commands run."""
    look = find or _find_program
    absent = {program: entry for program, entry in PROGRAMS.items() if look(program) is None}
    if not absent:
        return Finding("programs", Level.OK, ", ".join(PROGRAMS))
    found = "; ".join(f"no {program} ({purpose})" for program, (_, purpose, _) in absent.items())
    level = Level.PROBLEM if any(needed for _, _, needed in absent.values()) else Level.NOTE
    return Finding("programs", level, found, "Run: apt-get install " + " ".join(p for p, _, _ in absent.values()))


def _find_program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _pretty_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "an unnamed distribution")
    except OSError:
        return "an unknown distribution"
