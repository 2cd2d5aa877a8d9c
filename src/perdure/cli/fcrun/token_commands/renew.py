"""fcrun token renew"""

from __future__ import annotations

import argparse

NAME = "renew"
HELP = "Print another text for a token: it keeps its sandboxes, and the former text is good for nothing"
GROUP = "System"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--expires", default="", metavar="TIME", help="how long it is good: 12h, 30d (for ever)")
    parser.add_argument("token", metavar="TOKEN", help="id or name")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._moment import duration
    from perdure.cli.fcrun._node import node

    expires_s = duration(options.expires, "--expires") if options.expires else None
    with node() as client:
        print(client.border.renew_token(options.token, expires_s=expires_s)[1])
    return 0
