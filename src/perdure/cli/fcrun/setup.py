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
    from perdure.host import assets
    from perdure.host.paths import Home
    from perdure.host.progress import TerminalProgress, silent

    home = Home.find()
    if options.verify:
        assets.recorded(home, thorough=True)
    with TerminalProgress() as progress:
        found = assets.ensure(home, silent if options.quiet else progress)
    if not options.quiet:
        print(f"Firecracker {found.firecracker_version}, Linux {found.kernel_release}, in {home.cache}")
    return 0
