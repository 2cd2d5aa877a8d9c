"""fcrun resume"""

from __future__ import annotations

import argparse

NAME = "resume"
HELP = "Go on with suspended sandboxes, or with ones whose machine died, from their last snapshot"
GROUP = "Common commands"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--snapshot", default=None, metavar="DIGEST", help="roll back to this one of its snapshots")
    parser.add_argument("-a", "--attach", action="store_true", help="join this terminal to its main process")
    parser.add_argument("-i", "--interactive", action="store_true", help="with -a: give it stdin")
    parser.add_argument(
        "--populate",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="bring all memory in the background once it runs (the default where some of it is in another store)",
    )
    parser.add_argument("sandboxes", nargs="+", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import each, node
    from perdure.cli.fcrun._terminal import follow_main
    from perdure.errors import InvalidValue

    if len(options.sandboxes) > 1 and (options.attach or options.snapshot):
        raise InvalidValue("--attach and --snapshot take one sandbox")
    how = {"snapshot": options.snapshot, "populate": options.populate}
    with node() as client:
        if not options.attach:
            return each(options.sandboxes, lambda ref: client.resume(ref, **how))
        info = client.get(options.sandboxes[0])
        session = client.attach(info.id, waits=True)  # before: what it writes at once is not missed
        client.resume(info.id, **how)
    return follow_main(client, info.id, session, tty=info.spec.tty, stdin=options.interactive)
