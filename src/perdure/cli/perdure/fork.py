"""perdure fork"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.client.server import ServerClient
    from perdure.model import RunInfo

NAME = "fork"
HELP = "Let other runs go on from an entry of a run's log"
GROUP = "Time travel"
DESCRIPTION = (
    "New runs share a run's log up to an entry and go on from there, each by itself, with the machine as it was then: "
    "the nearest snapshot at or below that entry, and what is in the log since. The run itself goes on as before. "
    "Prints the ids of the new runs."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")
    parser.add_argument("--at", type=int, metavar="SEQ", help="the last entry to share ('perdure log RUN'); the newest")
    parser.add_argument("-n", type=int, default=1, dest="count", metavar="N", help="how many (1)")
    parser.add_argument("--name", default="", help="a name to call it by; of several: NAME-1, NAME-2 …")
    parser.add_argument("--key", help="fork only once: the same key gives the same runs")
    parser.add_argument(
        "--wait", action="store_true", help="until all have ended, then their results; status 1: not all completed"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.client.server import ServerClient

    server = ServerClient()
    forks = server.fork(options.run_id, at=options.at, count=options.count, name=options.name, key=options.key)
    if options.wait:
        forks = [_ended(server, fork) for fork in forks]
    if options.json:
        for fork in forks:
            print(msgspec.json.encode(fork).decode())
    elif options.wait:
        _table(forks)
    else:
        for fork in forks:
            print(fork.id)
    return int(options.wait and any(fork.state != "completed" for fork in forks))


def _ended(server: ServerClient, fork: RunInfo) -> RunInfo:
    from perdure.client.server import ENDED

    while fork.state not in ENDED:
        fork = server.get(fork.id, wait_s=30)
    return fork


def _table(forks: list[RunInfo]) -> None:
    from perdure.cli.perdure import _words

    rows = []
    for fork in forks:
        result = fork.result if fork.error is None else fork.error.get("message", "")
        rows.append([fork.id, fork.name, fork.state.value, _words.value(result, 60)])
    print(_words.table(["RUN", "NAME", "STATE", "RESULT"], rows), end="")
