"""fcrun top"""

from __future__ import annotations

import argparse

NAME = "top"
HELP = "Show the processes of a sandbox; its image needs no ps for it"
GROUP = "Sandboxes"
DESCRIPTION = (
    f"{HELP}. OPTIONS are those of ps(1) that choose columns: -ef (without any), aux, -o COLUMN,COLUMN=HEADING. The "
    "pids are those in the sandbox. COLUMN: "
)


def configure(parser: argparse.ArgumentParser) -> None:
    from perdure.cli.fcrun._processes import COLUMNS

    parser.description = DESCRIPTION + ", ".join(sorted(COLUMNS)) + "."
    parser.add_argument("sandbox", metavar="SANDBOX")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="OPTIONS")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun import _processes
    from perdure.cli.fcrun._node import node

    wanted = _processes.wanted(options.options)
    with node() as client:
        found = client.top(options.sandbox)
    for line in _processes.lines(found, wanted):
        print(line)
    return 0
