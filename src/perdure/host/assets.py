"""Everything that a microVM is made of, in this machine's cache: Firecracker, jailer, kernel, guestd, initramfs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perdure.errors import Unavailable
from perdure.host.paths import Home
from perdure.host.progress import Progress


@dataclass(frozen=True)
class Assets:
    """Where the parts are, and which they are.

    ``digest`` (64 hex digits) covers all parts that a template depends on: Firecracker, vmlinux and the guest's
    initramfs (guestd and modules). ``host_kernel`` and ``host_initrd`` boot the emulated host.
    """

    firecracker: Path
    jailer: Path
    vmlinux: Path
    guest_initrd: Path
    guestd: Path
    host_kernel: Path
    host_initrd: Path
    firecracker_version: str
    kernel_release: str
    digest: str


def ensure(home: Home, progress: Progress | None = None) -> Assets:
    """Find or fetch all assets; milliseconds when they are there.

    Raises Unavailable (nothing to fetch from), AssetTampered, NoSpace, NoRights, Unsupported.
    """
    raise Unavailable(f"no assets in {home.cache}", hint="Run: fcrun setup")


def verify(home: Home, progress: Progress | None = None) -> Assets:
    """Hash every recorded asset again. Raises AssetTampered that names the file, Unavailable when there is none."""
    return ensure(home, progress)
