"""fcrun host"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.host.below import BelowStatus

NAME = "host"
HELP = "Start, stop or show what runs machines here: the launcher, in the emulated host where KVM is not usable"
GROUP = "Host"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("start", "stop", "status"), metavar="start|stop|status")
    parser.add_argument("--format", default="table", choices=("table", "json"))


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import refuse_elsewhere
    from perdure.host import assets, below
    from perdure.host.paths import Home
    from perdure.host.progress import TerminalProgress

    refuse_elsewhere("host")
    home = Home.find()
    if options.action == "stop":
        print("stopped" if below.stop(home) else "nothing ran")
        return 0
    if options.action == "start":
        with TerminalProgress() as progress:
            parts = assets.ensure(home, progress)
            below.ensure(home, parts, progress)
    else:
        recorded = assets.recorded(home)
        if recorded is None:
            return _show(below.status(home), options.format)
        parts = recorded
    return _show(below.status(home, parts), options.format)


def _show(status: BelowStatus, form: str) -> int:
    """Print it; 0 when the launcher answers, 1 when not."""
    address = status.address
    where = "" if address is None else str(address)
    if form == "json":
        value = {
            "running": status.running,
            "answers": status.answers,
            "emulated": status.emulated,
            "address": where,
            "pids": status.pids,
            "keepers": status.keepers,
            "uptime_s": round(status.uptime_s, 1),
            "kernel_boot_s": status.kernel_boot_s,
            "launcher_boot_s": status.launcher_boot_s,
            "outdated": status.outdated,
        }
        print(json.dumps(value))
    elif not status.running:
        print("not running (the first command that needs it starts it)")
    else:
        print(f"{'emulated host' if status.emulated else 'launcher'}: {'answers' if status.answers else 'silent'}")
        print(f"  address    {where}")
        print(f"  machines   {status.keepers}")
        print(f"  processes  {', '.join(f'{name} {pid}' for name, pid in status.pids.items())}")
        print(f"  uptime     {status.uptime_s:.0f} s")
        print(f"  boot       {_boot(status)}")
        if status.outdated:
            print("  outdated   it was started from another version; it restarts by itself once no machine runs")
    return 0 if status.answers else 1


def _boot(status: BelowStatus) -> str:
    launcher = f"launcher answering after {status.launcher_boot_s:.2f} s"
    if not status.emulated or not status.kernel_boot_s:
        return launcher
    ratio = status.launcher_boot_s / status.kernel_boot_s
    return f"kernel {status.kernel_boot_s:.2f} s, {launcher} ({ratio:.2f} x)"
