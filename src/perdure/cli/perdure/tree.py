"""perdure tree"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

NAME = "tree"
HELP = "Show how runs, their branches, forks and children descend from each other"
GROUP = "Time travel"

WHY = {"diverged": "went another way", "rewound": "rewound"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", nargs="?", metavar="RUN", help="id, unique prefix of it, or name (all runs)")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line, for each run that descends from none"
    )


def run(options: argparse.Namespace) -> int:
    import json
    import sys

    from perdure.cli.perdure import _follow, _words
    from perdure.client.server import ServerClient

    server = ServerClient()
    trees = [server.tree(options.run_id)] if options.run_id else server.trees()
    columns = _follow.width(sys.stdout.isatty())
    for tree in trees:
        if options.json:
            print(json.dumps(tree, ensure_ascii=False))
        else:
            for line in lines(tree):
                print(_words.shorten(line, columns, spaces=True))
    return 0


def lines(tree: dict[str, Any]) -> Iterator[str]:
    """The tree as text: a run, below it its branches and forks by the entry where they leave it, then its children."""
    # (what leads to it, what leads to what is below it, run); no recursion: forks of forks may be many
    waiting: list[tuple[str, str, dict[str, Any] | str]] = [("", "", tree)]
    while waiting:
        lead, below, one = waiting.pop()
        if isinstance(one, str):
            yield lead + one
            continue
        yield lead + _run(one)
        parts = sorted([*_branches(one), *_forks(one)], key=lambda part: part[0])
        parts += [(0, {**child, "is_child": True}) for child in one["children"]]
        for index, (_, part) in reversed(list(enumerate(parts))):
            is_last = index == len(parts) - 1
            waiting.append((below + ("└─ " if is_last else "├─ "), below + ("   " if is_last else "│  "), part))


def _run(run: dict[str, Any]) -> str:
    from perdure.cli.perdure import _words

    origin, waits = run.get("origin"), ", ".join(run.get("waits") or [])
    lead = "child " if run.get("is_child") else f"at {origin['seq']}: " if origin else ""
    told = [lead, run["id"], f" {run['name']!r}" if run.get("name") else ""]
    told += [f"  {_words.shorten(run['agent'], 32)}  {run['state']}", f"  {run['seq']} entries"]
    return "".join(told) + (f"  waits: {waits}" if waits else "")


def _branches(run: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Nothing where there is only the first one."""
    for one in run["branches"] if len(run["branches"]) > 1 else ():
        why = WHY.get(one["why"], "")
        told = f"at {one['fork_seq']}: " if one["branch"] > 1 else ""
        told += f"branch {one['branch']}, up to {one['seq']}" + (f", {why}" if why else "")
        yield one["fork_seq"], told + ("  (current)" if one["current"] else "")


def _forks(run: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    for fork in run["forks"]:
        yield fork["origin"]["seq"], fork
