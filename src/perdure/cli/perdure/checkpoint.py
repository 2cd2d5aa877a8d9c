"""perdure checkpoint"""

from __future__ import annotations

import argparse

NAME = "checkpoint"
HELP = "Capture a run's machine now, while it goes on"
GROUP = "Runs"
DESCRIPTION = (
    "Capture a run's machine at its position in the log, and let it go on: what is lost later goes on from there. Of a "
    "run that sleeps, it is the snapshot that it sleeps in. A step that was begun, or an answer on its way, is waited "
    "for."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")
    parser.add_argument("--keep", action="store_true", help="do not give it up for newer ones")
    parser.add_argument("--json", action="store_true", help="print the snapshot as JSON")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.perdure._words import size
    from perdure.client.server import ServerClient

    snapshot = ServerClient().checkpoint(options.run_id, keep=options.keep)
    if options.json:
        print(msgspec.json.encode(snapshot).decode())
        return 0
    seq = snapshot.position.seq if snapshot.position else 0
    print(f"{snapshot.digest}  entry {seq}, {size(snapshot.stored_bytes)} stored, still for {snapshot.pause_s:.2f}s")
    return 0
