"""fcrun system info"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun._system import configure, show

__all__ = ["GROUP", "HELP", "NAME", "configure", "run"]

NAME = "info"
HELP = "Show what the node is"
GROUP = "System"


def run(options: argparse.Namespace) -> int:
    return show(options)
