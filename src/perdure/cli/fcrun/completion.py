"""fcrun completion"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable

NAME = "completion"
HELP = "Print the script that completes fcrun's words in your shell"
GROUP = "System"
DESCRIPTION = """\
Print the script that completes fcrun's words in your shell: commands, options, and the names of sandboxes, images,
snapshots and templates. In ~/.bashrc: source <(fcrun completion bash). In ~/.zshrc, after compinit:
source <(fcrun completion zsh). In ~/.config/fish/config.fish: fcrun completion fish | source."""


def configure(parser: argparse.ArgumentParser) -> None:
    from perdure.cli import completing

    completing.add_options(parser)


def run(options: argparse.Namespace) -> int:
    from perdure.cli.completing import candidates, script

    if options.words is not None:
        from perdure.cli.fcrun import PROGRAM
        from perdure.cli.program import split_host

        words, host = split_host(options.words)
        if host is not None:
            os.environ["FCRUN_HOST"] = host
        found = candidates(PROGRAM, words, _names)
        sys.stdout.write("".join(f"{each}\n" for each in found))
        return 0
    sys.stdout.write(script("fcrun", options.shell))
    return 0


def _names(kind: str) -> Iterable[str]:
    """What the node has of a kind. A key that was pressed starts no node, and waits for none that is busy."""
    from perdure.client.node import NodeClient
    from perdure.errors import PerdureError
    from perdure.host.paths import Home

    home = Home.find()
    if not os.environ.get("FCRUN_HOST") and not os.path.exists(home.socket("fcrund")):
        return []
    try:
        client = NodeClient.named(os.environ, home)
        if kind in ("SANDBOX", "SANDBOX|IMAGE"):
            return [info.name for info in client.list()]
        if kind == "IMAGE":
            return [name for image in client.images() if (name := image.name.removesuffix(":latest"))]
        if kind == "TEMPLATE":
            return [template.name for template in client.templates()]
        if kind == "VOLUME":
            return [volume.name for volume in client.volumes.list()]
        if kind == "SNAPSHOT":
            found = client.store.list()
            return [*(info.name for info in client.list()), *(one.digest[7:19] for one in found)]
    except PerdureError:
        pass
    return []
