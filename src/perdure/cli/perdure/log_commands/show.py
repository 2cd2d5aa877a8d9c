"""perdure log show"""

from __future__ import annotations

import argparse

from perdure.cli.perdure import _entries

NAME = "show"
HELP = "Print a run's context log, entry by entry"
GROUP = "Runs"


def configure(parser: argparse.ArgumentParser) -> None:
    _entries.configure(parser)
    parser.add_argument("--branch", type=int, metavar="N", help="of an older branch ('perdure tree RUN')")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many entries")


def run(options: argparse.Namespace) -> int:
    return _entries.tell(options, follow=options.follow, limit=options.limit, branch=options.branch)
