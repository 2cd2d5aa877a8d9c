"""perdure budget"""

from __future__ import annotations

import argparse

NAME = "budget"
HELP = "Show what a run may spend on models, or change it"
GROUP = "Runs"
DESCRIPTION = (
    "Show what a run may spend on models and what it has spent; with --set change that, from its next call on. What "
    "was refused stays so: a program that ended of it goes on after 'perdure rewind'."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")
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

    limits = _lifecycle.budget(options.limits, "--set")
    server = ServerClient()
    info = server.set_budget(options.run_id, **limits) if limits else server.get(options.run_id)
    print(f"may spend: {_words.budget(info) or 'as much as it likes'}")
    print(f"spent:     {_words.spent(info.spent) or 'nothing'}")
    return 0
