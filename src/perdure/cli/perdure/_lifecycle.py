"""What ``perdure run`` may say of a run's life: how long it may take, and when it is tried again."""

from __future__ import annotations

import argparse
from typing import Any

from perdure.errors import InvalidValue


def add_options(parser: argparse.ArgumentParser) -> None:
    life = parser.add_argument_group("how it lives")
    life.add_argument("--timeout", metavar="TIME", help="it fails when it has not ended after so long: 90s, 2h, 3d")
    life.add_argument("--active-timeout", metavar="TIME", help="the same, of the time that it has a machine")
    life.add_argument("--queue", metavar="NAME", help="it begins when its turn comes ('perdure queue ls')")
    life.add_argument("--queue-key", metavar="KEY", help="what the queue's limit per key counts")
    life.add_argument("--priority", type=int, default=0, metavar="N", help="in the queue: higher ones first (0)")
    life.add_argument(
        "--on-divergence",
        choices=("fork", "fail", "live"),
        default="",
        help="when its program goes another way than its log, after a loss: on a new branch (fork), fail, or live",
    )
    life.add_argument("--hook", action="append", default=[], metavar="URL", help="told of its end (can be repeated)")
    life.add_argument(
        "--retry",
        action="append",
        default=[],
        metavar="[KIND=]ATTEMPTS[:TIME]",
        help="attempts in all, and the first pause, after a failure: of any kind, or agent-failed, program-failed, "
        "machine-failed, timed-out (can be repeated)",
    )
    life.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="LIMIT=N",
        help="what it may spend on models: tokens=100k, calls=50, usd=2.5; 0: as much as it likes (can be repeated)",
    )


def wishes(options: argparse.Namespace) -> dict[str, Any]:
    """Those parts of a ``StartRequest``. InvalidValue names the option."""
    from perdure.cli.perdure import _json, _words

    wished: dict[str, Any] = {}
    for field in ("timeout", "active_timeout"):
        if (limit := getattr(options, field)) is not None:
            wished[f"{field}_s"] = _words.seconds(limit, "--" + field.replace("_", "-"))
    wished |= {"queue": options.queue, "queue_key": options.queue_key, "priority": options.priority}
    wished["hooks"] = [{"url": url} for url in options.hook]
    wished |= {"key_scope": options.key_scope, "tags": tags(options.tag)}
    if options.key_ttl is not None:
        wished["key_ttl_s"] = _words.seconds(options.key_ttl, "--key-ttl")
    if options.metadata is not None:
        wished["metadata"] = _json.argument(options.metadata, "--metadata")
    if options.on_divergence:
        wished["on_divergence"] = options.on_divergence
    if options.budget:
        wished["budget"] = budget(options.budget, "--budget")
    if options.retry:
        wished["retry"] = dict(_retry(text) for text in options.retry)
    return wished


def tags(given: list[str]) -> dict[str, str]:
    """Those of options ``--tag NAME=VALUE``. InvalidValue."""
    for text in given:
        if text.find("=") < 1:
            raise InvalidValue(f"--tag {text!r} is not NAME=VALUE")
    return dict(text.split("=", 1) for text in given)


def budget(given: list[str], option: str) -> dict[str, float]:
    """The limits of options ``LIMIT=N``. InvalidValue."""
    return dict(_limit(text, option) for text in given)


def _limit(text: str, option: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    unit = {"k": 1_000, "m": 1_000_000}.get(number[-1:].lower(), 1)
    digits = number if unit == 1 else number[:-1]
    if name not in ("tokens", "calls", "usd") or not digits.replace(".", "", 1).isdecimal():
        hint = f"write {option} tokens=100k, {option} calls=50 or {option} usd=2.5"
        raise InvalidValue(f"{option} {text!r} is no limit", hint=hint)
    amount = float(digits) * unit
    return name, amount if name == "usd" else round(amount)


def _retry(text: str) -> tuple[str, dict[str, Any]]:
    from perdure.cli.perdure import _words

    kind, _, rule = text.rpartition("=")
    attempts, colon, pause = rule.partition(":")
    if not attempts.isdigit():
        hint = "write --retry 3, or --retry timed-out=3:10s: three attempts, and 10 s before the second"
        raise InvalidValue(f"--retry {text!r} has no number of attempts", hint=hint)
    delay = {"delay_s": _words.seconds(pause, f"--retry {text!r}: the pause")} if colon else {}
    return kind or "any", {"attempts": int(attempts), **delay}
