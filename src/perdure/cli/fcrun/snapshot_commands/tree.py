"""fcrun snapshot tree"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from perdure.cli.fcrun import _format

if TYPE_CHECKING:
    from perdure.reports import TreeNode

NAME = "tree"
HELP = "Draw what was made from what: templates, snapshots, forks as branches"
GROUP = "Snapshots"
WIDTH = 100  # of a line; deeper branches shorten names, not figures
FIGURES = 34  # of it: age and size at its end


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", default="tree", choices=("tree", "json"), help="'json': one node a line")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the digests")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node

    with node() as client:
        nodes = client.store.tree()
    if options.quiet:
        for one in nodes:
            if one.kind == "snapshot":
                print(_format.digest(one.name))
    elif options.format == "json":
        for one in nodes:
            print(json.dumps(msgspec.to_builtins(one)))
    else:
        for line in draw(nodes):
            print(line)
    return 0


def draw(nodes: Sequence[TreeNode]) -> Iterator[str]:
    """The lines of the picture."""
    for node, prefix in zip(nodes, _prefixes(nodes), strict=True):
        if node.kind == "template":
            yield f"template {node.name}"
            continue
        names = [_format.digest(node.name), node.sandbox_name or f"{node.sandbox_id} (gone)", *node.tags]
        if node.lost_parent:
            names.append(f"(its parent {_format.digest(node.lost_parent)} is gone)")
        text = prefix + "  ".join(names)
        room = WIDTH - FIGURES
        if len(text) > room:
            text = text[: room - 1] + "…"
        yield f"{text.ljust(room)}  {_format.size(node.stored_bytes):>7}  {_format.ago(node.created)} ago".rstrip()


def _prefixes(nodes: Sequence[TreeNode]) -> list[str]:
    """What is drawn before each node. Seen from below: at which depths a line goes on to something further down."""
    found = []
    goes_on: set[int] = set()  # depths d whose line, in column d - 1, is continued below this node
    for node in reversed(nodes):
        depth = node.depth
        goes_on = {level for level in goes_on if level <= depth}
        lines = "".join("│  " if level in goes_on else "   " for level in range(1, depth))
        if depth == 0:
            found.append("")
            goes_on = set()
            continue
        own = depth in goes_on
        if node.branch:
            found.append(lines + ("├─ " if own else "└─ "))
            goes_on.add(depth)
        else:
            found.append(lines + ("│  " if own else "   "))
            goes_on.add(depth + 1)  # branches that left its line come before it and are joined to it
    return found[::-1]
