"""perdure signal"""

from __future__ import annotations

import argparse

NAME = "signal"
HELP = "Send a run a signal that it waits for"
GROUP = "People"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")
    parser.add_argument("name", metavar="NAME", help="the signal's name, as in ctx.wait_for(NAME)")
    parser.add_argument("value", metavar="VALUE", nargs="?", help="what comes with it: JSON, @FILE, or - for stdin")
    parser.add_argument("--id", help="the run takes a signal of the same id only once")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.perdure import _json
    from perdure.client.server import ServerClient

    value = None if options.value is None else _json.argument(options.value, "VALUE")
    info = ServerClient().signal(options.run_id, options.name, value, id=options.id)
    told = {
        "taken": f"signal {options.name}: run {info.id} was waiting for it, and has it",
        "kept": f"signal {options.name} is kept until run {info.id} waits for it",
        # without an id of its own it was sent on twice, by a server that the run was not at
        "duplicate": f"signal {options.name}: run {info.id} has it"
        if options.id is None
        else f"run {info.id} has had a signal with the id {options.id} before: this one is not kept",
    }
    print(told[info.outcome])
    return 0
