"""fcrun setup"""

from __future__ import annotations

import argparse

NAME = "setup"
HELP = "Fetch and build what microVMs are made of: Firecracker, a kernel, guestd"
GROUP = "Host"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verify", action="store_true", help="hash every file again")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")


def run(options: argparse.Namespace) -> int:
    import os

    from perdure.cli.fcrun._node import refuse_elsewhere
    from perdure.host import assets, kvm
    from perdure.host.emulated import find_programs
    from perdure.host.paths import Home
    from perdure.host.progress import TerminalProgress, silent

    refuse_elsewhere("setup")
    home = Home.find()
    if options.verify:
        assets.recorded(home, thorough=True)
    with TerminalProgress() as progress:
        report = silent if options.quiet else progress
        found = assets.ensure(home, report)
        # Only who may start machines can tell; trying it here, the first command need not.
        verdict = kvm.verdict(home, found, report) if os.geteuid() == 0 else None
        if verdict is not None and not verdict.boots:
            find_programs()
    if not options.quiet:
        print(f"Firecracker {found.firecracker_version}, Linux {found.kernel_release}, in {home.cache}")
        if verdict is not None:
            print(f"KVM: {verdict.reason}" + ("" if verdict.boots else "; the emulated host serves instead"))
    return 0
