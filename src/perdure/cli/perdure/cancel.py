"""perdure cancel"""

from __future__ import annotations

import argparse

NAME = "cancel"
HELP = "End a run and its machine; its log is kept"
GROUP = "Runs"
DESCRIPTION = (
    "End a run, its children and their machines; logs are kept. Its program is told (an agent's next call raises "
    "Cancelled, any other program gets its stop signal) and may clean up for some time."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")
    parser.add_argument("--reason", default="", help="recorded in the log")
    parser.add_argument("--clean-up", metavar="TIME", help="how long its program may clean up: 90s, 5m (30s)")
    parser.add_argument("-f", "--force", action="store_true", help="end it at once")
    parser.add_argument("--wait", action="store_true", help="return when it has ended")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.perdure import _words
    from perdure.client.server import ENDED, ServerClient

    clean_up_s = None if options.clean_up is None else _words.seconds(options.clean_up, "--clean-up")
    server = ServerClient()
    info = server.cancel(options.run_id, reason=options.reason, clean_up_s=clean_up_s, force=options.force)
    while options.wait and info.state not in ENDED:
        info = server.get(info.id, wait_s=30)
    print(f"run {info.id} is {info.state if info.state in ENDED else 'being cancelled: its program cleans up'}")
    return 0
