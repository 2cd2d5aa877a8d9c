"""fcrun image inspect: as ``fcrun inspect --type image``."""

from __future__ import annotations

import argparse

NAME = "inspect"
HELP = "Show all that is known of images, as JSON"
GROUP = "Images"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--format", default="json", metavar="FORMAT", help="'json' or a template: '{{.Config.Env}}'"
    )
    parser.add_argument("names", nargs="+", metavar="IMAGE")
    parser.set_defaults(type="image")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun.inspect import run as inspect

    return inspect(options)
