"""The launcher below the dotted line: here where KVM works, in the emulated host where it does not."""

from __future__ import annotations

from dataclasses import dataclass, field

from perdure.errors import Unavailable
from perdure.host.assets import Assets
from perdure.host.paths import Home
from perdure.host.progress import Progress
from perdure.model import LauncherAddress


@dataclass(frozen=True)
class BelowStatus:
    """What runs below the line for one home. Times in seconds; 0.0 where they are not known."""

    running: bool
    answers: bool
    emulated: bool
    address: LauncherAddress | None = None
    pids: dict[str, int] = field(default_factory=dict)
    uptime_s: float = 0.0
    kernel_boot_s: float = 0.0  # the emulated host's kernel: from its first instruction to init
    launcher_boot_s: float = 0.0  # from the start to a launcher that answers
    outdated: bool = False  # the package or the kernel changed since it was started


def ensure(home: Home, assets: Assets, progress: Progress | None = None) -> LauncherAddress:
    """Start what is missing, and give the address of a launcher that answers. Idempotent; safe to call at once twice."""
    raise Unavailable("no launcher answers", hint="Run: fcrun host start")


def stop(home: Home) -> bool:
    """End the launcher and the emulated host with all sandboxes in them. False: nothing ran."""
    return False


def status(home: Home) -> BelowStatus:
    """What runs now, without starting anything."""
    return BelowStatus(running=False, answers=False, emulated=False)
