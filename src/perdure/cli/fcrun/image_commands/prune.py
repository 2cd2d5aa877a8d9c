"""fcrun image prune"""

from __future__ import annotations

import argparse

NAME = "prune"
HELP = "Remove images without a name that no sandbox uses"
GROUP = "Images"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="also those with a name")
    parser.add_argument("-f", "--force", action="store_true", help="do not ask")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="KEY=VALUE", help="until=WHEN, label=NAME[=VALUE], label!=…"
    )


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun import _format
    from perdure.cli.fcrun._node import node

    until, labels, without = _filters(options.filter)
    if not options.force and not _agreed(every=options.all):
        return 0
    with node() as client:
        pruned = client.library.prune(every=options.all, until=until, labels=labels, without_labels=without)
    if pruned.untagged or pruned.deleted:
        print("Deleted Images:")
        told = [f"untagged: {name}" for name in pruned.untagged] + [f"deleted: {one}" for one in pruned.deleted]
        print(*told, sep="\n")
        print()
    print(f"Total reclaimed space: {_format.size(pruned.freed_bytes)}")
    return 0


def _filters(texts: list[str]) -> tuple[float | None, list[str], list[str]]:
    """(until, labels, labels that must not be there)."""
    from perdure.cli.fcrun._moment import moment
    from perdure.errors import InvalidValue

    until: float | None = None
    labels: list[str] = []
    without: list[str] = []
    for text in texts:
        key, _, value = text.partition("=")
        if key == "until" and value:
            until = moment(value, "--filter until")
        elif key == "label" and value:
            labels.append(value)
        elif key == "label!" and value:
            without.append(value)
        else:
            raise InvalidValue(f"--filter: {text!r}", hint="Use until=, label= or label!=.")
    return until, labels, without


def _agreed(*, every: bool) -> bool:
    import sys

    from perdure.errors import InvalidValue

    which = "all images without a sandbox" if every else "all images without a name and without a sandbox"
    print(f"WARNING! This will remove {which}.")
    if not sys.stdin.isatty():
        raise InvalidValue("nobody can be asked here", hint="fcrun image prune --force")
    return input("Are you sure you want to continue? [y/N] ").strip().lower() in ("y", "yes")
