"""perdure completion"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable

NAME = "completion"
HELP = "Print the script that completes perdure's words in your shell"
GROUP = "This machine"
DESCRIPTION = """\
Print the script that completes perdure's words in your shell: commands, options, and the names of runs, queues and
schedules. In ~/.bashrc: source <(perdure completion bash). In ~/.zshrc, after compinit:
source <(perdure completion zsh). In ~/.config/fish/config.fish: perdure completion fish | source."""


def configure(parser: argparse.ArgumentParser) -> None:
    from perdure.cli import completing

    completing.add_options(parser)


def run(options: argparse.Namespace) -> int:
    from perdure.cli.completing import candidates, script

    if options.words is not None:
        from perdure.cli.perdure import PROGRAM

        sys.stdout.write("".join(f"{each}\n" for each in candidates(PROGRAM, options.words, _names)))
    else:
        sys.stdout.write(script("perdure", options.shell))
    return 0


def _names(kind: str) -> Iterable[str]:
    """What the server has of a kind. A key that was pressed starts no server, and waits for none that is away."""
    from perdure.client.server import ServerClient
    from perdure.errors import PerdureError
    from perdure.host.paths import Home

    if kind == "STATE":
        from perdure.model import RunState

        return [str(state) for state in RunState]
    home = Home.find()
    if not os.path.exists(home.socket("perdured")):
        return []
    server = ServerClient(home)
    try:
        if kind in ("RUN", "A", "B"):
            return [name for run in server.runs() for name in (run.id, run.name) if name]
        if kind == "QUEUE":
            return [queue["name"] for queue in server.queues.list()]
        if kind == "SCHEDULE":
            return [schedule["name"] for schedule in server.schedules.list()]
    except PerdureError:
        pass
    return []
