"""perdure log import"""

from __future__ import annotations

import argparse

NAME = "import"
HELP = "Take up the log of a run that was exported elsewhere, or pruned here"
GROUP = "Runs"
DESCRIPTION = (
    "The run keeps its id, and must have ended. Each line is verified before it is taken, and nothing is seen of the "
    "run before the last one. A fork is taken up after the run that it shares entries with. A run whose log was pruned "
    "here has it back, if that is the very same."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="what 'perdure log export' wrote; -: stdin")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.perdure import _logfile, _progress
    from perdure.client.server import ServerClient

    info = ServerClient().take_up(_progress.counted(_logfile.lines(options.file), "sent"))
    print(info.id)
    return 0
