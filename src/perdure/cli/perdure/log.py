"""perdure log"""

from __future__ import annotations

import argparse

NAME = "log"
HELP = "Print a run's context log, entry by entry"
GROUP = "Runs"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    parser.add_argument("--after", type=int, default=0, metavar="SEQ", help="only entries after this one")
    parser.add_argument("--branch", type=int, metavar="N", help="of an older branch ('perdure tree RUN')")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, whole")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.perdure import _words
    from perdure.client.server import ServerClient

    entries = ServerClient().entries(options.run_id, after=options.after, follow=options.follow, branch=options.branch)
    for entry in entries:
        if options.json:
            print(msgspec.json.encode(entry).decode(), flush=True)
            continue
        head = f"{entry.seq:>5}  {_words.clock(entry.time)}  {entry.kind:<15}  {entry.key or '':<8}  "
        print((head + _words.value(entry.payload, max(20, 100 - len(head)))).rstrip(), flush=True)
    return 0
