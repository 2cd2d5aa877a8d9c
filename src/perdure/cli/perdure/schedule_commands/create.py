"""perdure schedule create"""

from __future__ import annotations

import argparse
from typing import Any

from perdure.cli.perdure import run as run_command

NAME = "create"
HELP = "Make a schedule"
GROUP = "Schedules"
DESCRIPTION = (
    "Start an agent (FILE.py:FUNCTION), or with --image any program (-- COMMAND ...), by the clock: --cron with the "
    "five fields minute, hour, day-of-month, month, day-of-week, or --every. A time of day that a change of clocks "
    "jumps over is due right after it, one that comes twice the first time."
)


def configure(parser: argparse.ArgumentParser) -> None:
    when = parser.add_argument_group("when it is due")
    when.add_argument("--cron", default="", metavar="'M H D M W'", help="such as '30 9 * * 1-5'")
    when.add_argument("--zone", metavar="ZONE", help="the time zone of --cron: Europe/Berlin (UTC)")
    when.add_argument("--every", metavar="TIME", help="such as 15m, from now on")
    when.add_argument("--jitter", metavar="TIME", help="later by a part of this, which its name decides")
    when.add_argument(
        "--catch-up", default="last", metavar="none|last|all[:N]", help="of moments that were missed (last; all:10)"
    )
    when.add_argument("--paused", action="store_true", help="nothing is started until it is resumed")
    run_command.add_options(parser, before="SCHEDULE ")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.perdure import _words
    from perdure.cli.perdure._image import ensure_default, is_default
    from perdure.client.server import ServerClient, request_of
    from perdure.errors import InvalidValue

    if not options.words:
        raise InvalidValue(
            "the schedule has no name", hint="write SCHEDULE FILE.py:FUNCTION, and then --cron or --every"
        )
    if bool(options.cron) == (options.every is not None):
        raise InvalidValue("a schedule is by --cron or by --every", hint="give one of them")
    if options.zone is not None and not options.cron:
        raise InvalidValue("--zone is of --cron: --every counts from now on", hint="leave it out")
    name, *options.words = options.words
    request = run_command.request_of(options)
    when: dict[str, Any] = {"cron": options.cron, "zone": options.zone or "UTC", "paused": options.paused}
    if options.every is not None:
        when["every_s"] = _words.seconds(options.every, "--every")
    if options.jitter is not None:
        when["jitter_s"] = _words.seconds(options.jitter, "--jitter")
    when |= _catch_up(options.catch_up)
    server = ServerClient()
    server.status()
    if request["durability"] == "snapshot" and is_default(request["image"]):
        request["image"] = ensure_default()
    with run_command.packing() as progress:
        request = server.with_packages(request, progress)
    made = server.schedules.create(name, request_of(**request), **when)
    coming = made["next"]
    print(made["name"] + (f"  next: {_words.clock(coming[0], day=True)}" if coming else "  paused"))
    return 0


def _catch_up(text: str) -> dict[str, Any]:
    from perdure.errors import InvalidValue

    policy, colon, most = text.partition(":")
    if policy not in ("none", "last", "all") or (colon and not (policy == "all" and most.isdigit())):
        raise InvalidValue(f"--catch-up {text!r} is unknown", hint="it is none, last, all, or all:N")
    return {"catch_up": policy, **({"catch_up_max": int(most)} if colon else {})}
