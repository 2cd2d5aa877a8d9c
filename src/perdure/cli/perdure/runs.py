"""perdure runs"""

from __future__ import annotations

import argparse

NAME = "runs"
HELP = "List runs"
GROUP = "Runs"
DESCRIPTION = "List runs, the newest first. TURNS: asked of a provider + answered from the log."


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
            _words.shorten(str(info.waits[0].get("name") or info.waits[0].get("kind")) if info.waits else "", 16),
        ]
        for info in found
    ]
    print(_words.table(["RUN", "NAME", "STATE", "AGENT", "CREATED", "TURNS", "WAITS FOR"], rows), end="")
    return 0
