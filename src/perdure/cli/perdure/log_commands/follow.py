"""perdure log follow"""

from __future__ import annotations

import argparse

from perdure.cli.perdure import _entries

NAME = "follow"
HELP = "Print a run's context log as it is written, until the run has ended"
GROUP = "Runs"


def configure(parser: argparse.ArgumentParser) -> None:
    _entries.configure(parser)


def run(options: argparse.Namespace) -> int:
    return _entries.tell(options, follow=True, limit=None)
