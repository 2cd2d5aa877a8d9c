"""What kind of machine this is: the few facts that decide what can be fetched and run."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass

from perdure.errors import NoRights, Unsupported

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # the kernel's name: Debian's name


@dataclass(frozen=True)
class MachineKind:
    """Architecture as the kernel names it, and the distribution (``debian``, ``ubuntu`` …)."""

    architecture: str
    distribution: str

    @property
    def debian_architecture(self) -> str:
        return ARCHITECTURES[self.architecture]


def require_supported(system: str = sys.platform, architecture: str | None = None) -> MachineKind:
    """This machine's kind. Raises Unsupported when it is not Linux on x86-64 or aarch64."""
    if system != "linux":
        raise Unsupported(
            f"microVMs need Linux, and this is {system}",
            hint="Run it on a Linux machine, or in a Linux VM (there the emulated host serves).",
        )
    found = architecture or platform.machine()
    if found not in ARCHITECTURES:
        raise Unsupported(
            f"Firecracker runs on x86_64 and aarch64, and this machine is {found}", hint="Use another machine."
        )
    return MachineKind(found, _distribution())


def require_root(what: str) -> None:
    """Raises NoRights when this process is not root's."""
    if os.geteuid() != 0:
        raise NoRights(f"{what} needs root (this is user {os.geteuid()})", hint="Run it with sudo.")


def boot_id() -> str:
    """What tells this boot of the kernel from others (proc(5))."""
    with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123 - one line of the kernel's
        return file.read().strip()


def _distribution() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "unknown"
    names = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    return next((name for name in names if name in ("ubuntu", "debian")), names[0] or "unknown")
