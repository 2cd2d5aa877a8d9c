"""fcrun diff"""

from __future__ import annotations

import argparse

NAME = "diff"
HELP = "Show what changed in a sandbox's files since its image: A added, C changed, D deleted"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sandbox", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    import sys

    from perdure.cli.fcrun._node import node

    with node() as client:
        for change in client.changes(options.sandbox):
            path = change.path
            if sys.stdout.isatty():  # what a sandbox calls its files is not to speak to the terminal
                path = "".join(letter if letter.isprintable() else "?" for letter in path)
            sys.stdout.buffer.write(f"{change.kind} {path}\n".encode(errors="surrogateescape"))
    sys.stdout.buffer.flush()
    return 0
