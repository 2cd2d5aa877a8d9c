"""fcrun wait"""

from __future__ import annotations

import argparse

NAME = "wait"
HELP = "Wait until sandboxes have exited, and print their exit statuses"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sandboxes", nargs="+", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node
    from perdure.errors import MachineFailed

    with node() as client:

        def status(ref: str) -> int:
            info = client.wait(ref)
            if info.exit_status is None:
                hint = f"Go on from its last snapshot: fcrun resume {info.name}" if info.snapshot else ""
                raise MachineFailed(f"the machine of sandbox {info.name} died: {info.cause}", hint=hint)
            return info.exit_status

        return each(options.sandboxes, status, lambda _, status: print(status, flush=True))
