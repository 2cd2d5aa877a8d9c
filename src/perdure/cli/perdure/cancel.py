"""perdure cancel"""

from __future__ import annotations

import argparse

NAME = "cancel"
HELP = "End a run and its machine; its log is kept"
GROUP = "Runs"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")
    parser.add_argument("--reason", default="", help="recorded in the log")


def run(options: argparse.Namespace) -> int:
    from perdure.client.server import ServerClient

    info = ServerClient().cancel(options.run_id, reason=options.reason)
    print(f"run {info.id} is cancelled")
    return 0
