"""The limits of a queue as options."""

from __future__ import annotations

import argparse
from typing import Any

from perdure.errors import InvalidValue

NONE = "none"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrency", metavar="N", help="runs at once, from when they begin until they end")
    parser.add_argument("--key-concurrency", metavar="N", help="the same, of those with one --queue-key")
    parser.add_argument("--rate", metavar="N/TIME", help="runs that begin in any such time: 10/1m, 1/s")


def fields(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given; 'none' is no limit. InvalidValue names the option."""
    found: dict[str, Any] = {}
    for field in ("concurrency", "key_concurrency"):
        if (text := getattr(options, field)) is not None:
            found[field] = None if text == NONE else _number(text, "--" + field.replace("_", "-"))
    if options.rate == NONE:
        found["rate"] = None
    elif options.rate is not None:
        count, _, period = options.rate.partition("/")
        found |= {"rate": _number(count, "--rate"), "period_s": _period(period, options.rate)}
    return found


def _number(text: str, option: str) -> int:
    if not text.isdigit():
        raise InvalidValue(f"{option} {text!r} is not a number", hint=f"give a number from 1 on, or '{NONE}'")
    return int(text)


def _period(text: str, given: str) -> float:
    from perdure.cli.perdure._words import seconds

    if not text:
        raise InvalidValue(f"--rate {given!r} names no time", hint="write --rate 10/1m: ten in a minute")
    return seconds(text if text[0].isdigit() else f"1{text}", f"--rate {given!r}")


def line(queue: dict[str, Any]) -> list[str]:
    """A row of the list."""
    from perdure.cli.perdure._words import period

    rate = f"{queue['rate']}/{period(queue['period_s'])}" if queue["rate"] else "-"
    limits = [str(queue[field] or "-") for field in ("concurrency", "key_concurrency")]
    state = "paused" if queue["paused"] else "open"
    return [queue["name"], state, str(queue["waiting"]), str(queue["active"]), *limits, rate]
