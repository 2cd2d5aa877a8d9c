"""perdure runs"""

from __future__ import annotations

import argparse

NAME = "runs"
HELP = "List runs"
GROUP = "Runs"
DESCRIPTION = (
    "List runs, the newest first. TURNS: asked of a provider + answered from the log. COST: of the turns with a known "
    "price, where there are some."
)
COST = 6  # its column


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state", action="append", default=[], metavar="STATE", help="only runs in this state (can be repeated)"
    )
    parser.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE", help="only runs with this tag")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the ids")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.perdure import _lifecycle, _words
    from perdure.client.server import ServerClient
    from perdure.errors import InvalidValue
    from perdure.model import RunState

    states = [state.value for state in RunState]
    for state in options.state:
        if state not in states:
            raise InvalidValue(f"--state {state!r} is unknown", hint=f"known are {', '.join(states)}")
    found = ServerClient().runs(states=options.state, tags=_lifecycle.tags(options.tag))
    if options.json or options.quiet:
        for info in found:
            print(msgspec.json.encode(info).decode() if options.json else info.id)
        return 0
    rows = [
        [
            info.id,
            _words.shorten(info.name, 16),
            info.state.value,
            _words.shorten(info.agent, 24),
            _words.clock(info.created, day=True),
            f"{info.turns_asked}+{info.turns_replayed}",
            _words.dollars(info.spent.cost_usd) if info.spent.cost_usd else "",
            _words.shorten(str(info.waits[0].get("name") or info.waits[0].get("kind")) if info.waits else "", 16),
        ]
        for info in found
    ]
    headings = ["RUN", "NAME", "STATE", "AGENT", "CREATED", "TURNS", "COST", "WAITS FOR"]
    if not any(row[COST] for row in rows):
        rows, headings = [row[:COST] + row[COST + 1 :] for row in rows], headings[:COST] + headings[COST + 1 :]
    print(_words.table(headings, rows), end="")
    return 0
