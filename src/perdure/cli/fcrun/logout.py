"""fcrun logout"""

from __future__ import annotations

import argparse

NAME = "logout"
HELP = "Forget the login to a registry"
GROUP = "Images"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("server", nargs="?", default="", metavar="SERVER", help="HOST[:PORT] (Docker Hub)")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun.login import place
    from perdure.host import logins

    _, account = place(options.server)
    if logins.forget(account):
        print(f"Removing login credentials for {account}")
    else:
        print(f"Not logged in to {account}")
    return 0
