"""perdure budget"""

from __future__ import annotations

import argparse

NAME = "budget"
HELP = "Show what a run, or all of an agent, may spend on models, or change a run's"
GROUP = "Runs"
DESCRIPTION = (
    "Show what a run may spend on models and what it has spent; with --set change that, from its next call on. What "
    "was refused stays so: a program that ended of it goes on after 'perdure rewind'. With --agents show what all runs "
    "of some agents may spend together, which settings.toml says, and what they have spent until now."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", nargs="?", help="id, unique prefix of it, or name")
    parser.add_argument("--agents", action="store_true", help="of all runs of an agent, together; without a run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="limits",
        metavar="LIMIT=N",
        help="tokens=100k, calls=50, usd=2.5; 0: as much as it likes (can be repeated)",
    )


def run(options: argparse.Namespace) -> int:
    from perdure.cli.perdure import _lifecycle, _words
    from perdure.client.server import ServerClient
    from perdure.errors import InvalidValue

    if options.agents == bool(options.run_id) or (options.agents and options.limits):
        raise InvalidValue(
            "whose budget?", hint="Name a run, or say --agents alone; settings.toml says what those may."
        )
    if options.agents:
        found = ServerClient().joint_budgets()
        for joint in found:
            print(f"{joint.name}: {_words.joint(joint)}")
        if not found:
            print("no agents have one: [budgets.NAME.all] in settings.toml makes it")
        return 0
    limits = _lifecycle.budget(options.limits, "--set")
    server = ServerClient()
    info = server.set_budget(options.run_id, **limits) if limits else server.get(options.run_id)
    print(f"may spend: {_words.budget(info) or 'as much as it likes'}")
    print(f"spent:     {_words.spent(info.spent) or 'nothing'}")
    return 0
