"""fcrun fork"""

from __future__ import annotations

import argparse

NAME = "fork"
HELP = "Make new sandboxes that go on from where another one is, memory, processes and files"
GROUP = "Snapshots"
DESCRIPTION = (
    "Make new sandboxes that go on from where another one is (one that runs is checkpointed, and runs on) or from a "
    "snapshot. Each has its own id, hostname, entropy and files from then on; they share what is stored. Prints the "
    "ids."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--count", type=int, default=1, metavar="N", help="how many (1)")
    parser.add_argument("--name", default="", help="their name; of several: NAME-1, NAME-2 …")
    parser.add_argument("--rm", action="store_true", help="remove each when it exits")
    parser.add_argument(
        "--populate",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="bring all memory in the background once it runs (the default where some of it is in another store)",
    )
    parser.add_argument("source", metavar="SANDBOX|SNAPSHOT")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node
    from perdure.errors import InvalidValue
    from perdure.model import Fork

    count, name = options.count, options.name
    if not 1 <= count <= 1000:
        raise InvalidValue(f"--count is {count}: it must be from 1 to 1000")
    names = [f"{name}-{number}" if name and count > 1 else name for number in range(1, count + 1)]
    with node() as client:
        forks = [Fork(name=name, auto_remove=options.rm) for name in names]
        for info in client.fork(options.source, forks, populate=options.populate):
            print(info.id)
    return 0
