"""perdure approve"""

from __future__ import annotations

import argparse

NAME = "approve"
HELP = "Answer what a run asks a person"
GROUP = "People"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")
    parser.add_argument("--wait", metavar="ID", help="which wait, where the run has several")
    parser.add_argument("--deny", action="store_true", help="say no")
    parser.add_argument("--comment", default="", help="what the agent gets to read")
    parser.add_argument("--by", default="", metavar="NAME", help="who answers (your user name)")


def run(options: argparse.Namespace) -> int:
    import os

    from perdure.client.server import ServerClient

    by = options.by or os.environ.get("SUDO_USER") or os.environ.get("USER") or f"uid {os.getuid()}"
    wait = ServerClient().approve(
        options.run_id, wait_id=options.wait, approved=not options.deny, comment=options.comment, by=by
    )
    print(f"{'denied' if options.deny else 'approved'}: {wait.get('name') or wait.get('id')}")
    return 0
