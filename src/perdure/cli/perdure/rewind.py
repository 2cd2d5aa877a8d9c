"""perdure rewind"""

from __future__ import annotations

import argparse

NAME = "rewind"
HELP = "Take a run back to an entry of its log"
GROUP = "Time travel"
DESCRIPTION = (
    "The run goes on from an entry of its log, on a new branch, with the machine as it was then; also when it has "
    "ended. What came after that entry stays readable ('perdure tree RUN', 'perdure log RUN --branch N')."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")
    parser.add_argument("seq", type=int, metavar="SEQ", help="the last entry that stays ('perdure log RUN')")
    parser.add_argument("--key", help="rewind only once: with the same key nothing more is done")


def run(options: argparse.Namespace) -> int:
    from perdure.client.server import ServerClient

    info = ServerClient().rewind(options.run_id, options.seq, key=options.key)
    print(f"run {info.id} goes on from entry {options.seq}, on branch {info.branch}")
    return 0
