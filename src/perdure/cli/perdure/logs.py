"""perdure logs"""

from __future__ import annotations

import argparse

NAME = "logs"
HELP = "Show what a run's program printed"
GROUP = "Runs"
DESCRIPTION = (
    "Show what a run's program wrote to its stdout and stderr, across its sleeps, restores and recoveries. What it "
    "did is in its log ('perdure log RUN'); what it emitted: 'perdure log follow RUN --kind emit'."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    parser.add_argument("-n", "--tail", type=int, metavar="N", help="only the last N lines")
    parser.add_argument(
        "--life", default="", metavar="LIFE", help="with --offset: which life that is of ('--json' says)"
    )
    parser.add_argument("--offset", type=int, default=0, metavar="N", help="from byte N on")
    parser.add_argument("--json", action="store_true", help="one JSON object a piece, with its position")


def run(options: argparse.Namespace) -> int:
    import sys

    import msgspec

    from perdure.cli.perdure._output import Seams, write
    from perdure.client.server import ServerClient
    from perdure.errors import InvalidValue

    if options.offset < 0 or (options.tail is not None and options.tail < 0):
        raise InvalidValue("--offset and --tail are numbers from 0 on")
    if options.offset and options.tail is not None:
        raise InvalidValue("--offset and --tail both say where to begin", hint="give one of them")
    where = {"life": options.life, "offset": options.offset, "tail": options.tail}
    seams = Seams(options.life, options.offset if options.tail is None else None)
    for piece in ServerClient().printed(options.run_id, follow=options.follow, **where):
        if options.json:
            print(msgspec.json.encode(piece).decode(), flush=True)
            continue
        if seam := seams.before(piece):
            print(f"perdure: {seam}", file=sys.stderr, flush=True)
        write(2 if piece.stream == "stderr" else 1, piece.data)
    return 0
