"""Printing entries of a log, for ``log show`` and ``log follow``."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")
    parser.add_argument("--after", type=int, default=0, metavar="SEQ", help="only entries after this one")
    parser.add_argument("--kind", metavar="KIND", help="only of this kind, or that begin so ('model.')")
    parser.add_argument("--lane", metavar="LANE", help="only of calls in this lane ('main')")
    parser.add_argument("--key", metavar="LANE/N", help="only of this call")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, whole")


def tell(options: argparse.Namespace, *, follow: bool, limit: int | None, branch: int | None = None) -> int:
    import msgspec

    from perdure.cli.perdure import _words
    from perdure.client.server import ServerClient
    from perdure.errors import InvalidValue

    if options.lane and options.key:
        raise InvalidValue("--lane and --key name the same thing", hint="give one of them")
    if branch is not None and (follow or branch < 1):
        raise InvalidValue("--branch N is of what was written: a number from 1 on, and not with --follow")
    if options.after < 0 or (limit is not None and limit < 1):
        raise InvalidValue("--after is a number from 0 on, --limit one from 1 on")
    entries = ServerClient().entries(
        options.run_id,
        after=options.after,
        follow=follow,
        branch=branch,
        kind=options.kind,
        key=f"{options.lane}/" if options.lane else options.key,
        limit=None if follow else limit,
    )
    for number, entry in enumerate(entries, 1):
        if options.json:
            print(msgspec.json.encode(entry).decode(), flush=True)
        else:
            head = f"{entry.seq:>5}  {_words.clock(entry.time)}  {entry.kind:<15}  {entry.key or '':<8}  "
            print((head + _words.value(entry.payload, max(20, 100 - len(head)))).rstrip(), flush=True)
        if number == limit:
            break
    return 0
