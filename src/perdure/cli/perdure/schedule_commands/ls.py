"""perdure schedule ls"""

from __future__ import annotations

import argparse

NAME = "ls"
HELP = "List schedules"
GROUP = "Schedules"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(options: argparse.Namespace) -> int:
    import json

    from perdure.cli.perdure import _words
    from perdure.client.server import ServerClient

    found = ServerClient().schedules.list()
    if options.json:
        for schedule in found:
            print(json.dumps(schedule))
        return 0
    rows = [
        [
            one["name"],
            f"{one['cron']} {one['zone']}" if one.get("cron") else f"every {_words.period(one['every_s'])}",
            "paused" if one["paused"] else _words.clock(one["next"][0], day=True),
            one.get("last_run", ""),
            _words.shorten((one.get("error") or {}).get("message", ""), 40),
        ]
        for one in found
    ]
    print(_words.table(["SCHEDULE", "WHEN", "NEXT", "LAST RUN", "ERROR"], rows), end="")
    return 0
