"""perdure up"""

from __future__ import annotations

import argparse

NAME = "up"
HELP = "Start server and node of this machine"
GROUP = "This machine"
DESCRIPTION = (
    "Start the server (runs, models, API) and the node (microVMs) of this state folder, in the background. Providers "
    "of models come from HOME/settings.toml and the environment (OPENAI_API_KEY, OPENAI_BASE_URL,"
    " ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL)."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the server's status as JSON")


def run(options: argparse.Namespace) -> int:
    import json

    from perdure.cli.perdure import _daemons
    from perdure.client.node import ensure_running
    from perdure.host.identity import node_home
    from perdure.host.paths import Home

    home = Home.find().make()
    _daemons.refuse_second(home)
    ensure_running(node_home(home).make())
    status = _daemons.start_server(home)
    if options.json:
        print(json.dumps(status))
    else:
        print(f"up: {status.get('url', '')}  (pid {status['pid']}, state in {home.root})")
    return 0
