"""fcrun logs"""

from __future__ import annotations

import argparse
import os

NAME = "logs"
HELP = "Show what a sandbox's main process wrote"
GROUP = "Common commands"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on until it exits")
    parser.add_argument("-n", "--tail", default="all", metavar="N", help="only the last N lines")
    parser.add_argument("-t", "--timestamps", action="store_true", help="when each line was written")
    parser.add_argument("--since", default="", metavar="WHEN", help="seconds since the epoch, RFC 3339, or ago: 10m")
    parser.add_argument("--until", default="", metavar="WHEN", help="only what was written before; with -f: end then")
    parser.add_argument("--details", action="store_true", help="before each line what --log-opt has chosen")
    parser.add_argument("sandbox", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun import _details
    from perdure.cli.fcrun._moment import moment
    from perdure.cli.fcrun._node import node
    from perdure.client.node import STDOUT

    with node() as client:
        details = _details.prefix(client, client.get(options.sandbox)) if options.details else b""
        marks = _Marks(details, stamped=options.timestamps) if details or options.timestamps else None
        since = moment(options.since, "--since") if options.since else None
        until = moment(options.until, "--until") if options.until else None
        how = {"follow": options.follow, "tail": _lines(options.tail), "since": since, "until": until}
        for record in client.logs(options.sandbox, **how):
            data = marks.put(record.stream, record.time, record.data) if marks else record.data
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(1 if record.stream == STDOUT else 2, rest) :]
    return 0


class _Marks:
    """Puts the time and the details before each line; knows per stream whether a line has begun."""

    def __init__(self, details: bytes, *, stamped: bool) -> None:
        self._details, self._stamped = details, stamped
        self._begun = {1: False, 2: False}

    def put(self, stream: int, moment: float, data: bytes) -> bytes:
        prefix = (_stamp(moment) if self._stamped else b"") + self._details
        marked = [line if number == 0 and self._begun[stream] else prefix + line
                  for number, line in enumerate(data.splitlines(keepends=True))]  # fmt: skip
        self._begun[stream] = not data.endswith(b"\n")
        return b"".join(marked)


def _stamp(moment: float) -> bytes:
    import datetime

    stamp = datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="microseconds")
    return stamp.replace("+00:00", "000Z ").encode()  # nine digits, as docker's


def _lines(text: str) -> int | None:
    from perdure.errors import InvalidValue

    if text == "all":
        return None
    try:
        return max(0, int(text))
    except ValueError:
        raise InvalidValue(f"--tail: {text!r} is no number of lines") from None
