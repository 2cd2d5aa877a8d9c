"""fcrun export"""

from __future__ import annotations

import argparse

NAME = "export"
HELP = "Write all files of a sandbox as a tar"
GROUP = "Sandboxes"
DESCRIPTION = (
    f"{HELP}; `fcrun import` makes an image of it. What is mounted into the sandbox (volumes, /proc, /dev, /tmp …) is "
    "named in it, and empty."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", default="-", metavar="FILE", help="instead of stdout")
    parser.add_argument("sandbox", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._files import save
    from perdure.cli.fcrun._node import node

    with node() as client:
        save(client.export(options.sandbox), options.output)
    return 0
