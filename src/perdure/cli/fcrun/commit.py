"""fcrun commit"""

from __future__ import annotations

import argparse

NAME = "commit"
HELP = "Make an image of a sandbox: its image, and what changed in its files"
GROUP = "Sandboxes"
DESCRIPTION = (
    f"{HELP}. In any state; memory is no part of it (`fcrun checkpoint` keeps that). By default the image runs what "
    "the sandbox was run with. What is mounted into the sandbox (volumes, /tmp, /run …) is not in it."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--author", default="", help="who made it")
    parser.add_argument(
        "-c",
        "--change",
        action="append",
        default=[],
        metavar="INSTRUCTION",
        help="a line of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR",
    )
    parser.add_argument("-m", "--message", default="", help="what it is for")
    parser.add_argument(
        "-p",
        "--pause",
        default="true",
        choices=("true", "false"),
        help="let the sandbox stand still meanwhile (true)",
    )
    parser.add_argument("sandbox", metavar="SANDBOX")
    parser.add_argument("name", nargs="?", default="", metavar="NAME[:TAG]")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node

    with node() as client:
        image = client.commit(
            options.sandbox,
            options.name,
            author=options.author,
            message=options.message,
            changes=options.change,
            pause=options.pause == "true",
        )
    print(image.digest)
    return 0
