"""Options about a sandbox's health and its end, as Docker has them."""

from __future__ import annotations

import argparse
from typing import Any

from perdure.errors import InvalidValue
from perdure.model import HealthCheck

FIXED: dict[str, tuple[str, object]] = {  # by a template: option -> (where its value is, what that is otherwise)
    "--stop-signal": ("stop_signal", ""),
    "--stop-timeout": ("stop_timeout", None),
    "--health-cmd": ("health_cmd", ""),
    "--health-interval": ("health_interval", ""),
    "--health-timeout": ("health_timeout", ""),
    "--health-retries": ("health_retries", 0),
    "--health-start-period": ("health_start_period", ""),
    "--health-start-interval": ("health_start_interval", ""),
    "--no-healthcheck": ("no_healthcheck", False),
}


def add_end_options(parser: argparse.ArgumentParser) -> None:
    """How it is told to end, and how it is found out that it does its work."""
    parser.add_argument("--stop-signal", default="", metavar="SIGNAL", help="that stop sends (the image's, or TERM)")
    parser.add_argument(
        "--stop-timeout", type=int, default=None, metavar="SECONDS", help="of stop before KILL (10); -1: none"
    )
    parser.add_argument("--health-cmd", default="", metavar="COMMAND", help="exits with 0 while all is well")
    parser.add_argument("--health-interval", default="", metavar="TIME", help="between probes, such as 5s or 1m (30s)")
    parser.add_argument("--health-timeout", default="", metavar="TIME", help="of one probe (30s)")
    parser.add_argument("--health-retries", type=int, default=0, metavar="N", help="failures in a row: unhealthy (3)")
    parser.add_argument("--health-start-period", default="", metavar="TIME", help="failures do not count yet (0s)")
    parser.add_argument("--health-start-interval", default="", metavar="TIME", help="between probes in that time")
    parser.add_argument("--no-healthcheck", action="store_true", help="no probes, whatever the image says")


def end_values(options: argparse.Namespace) -> dict[str, Any]:
    """Those of a ``SandboxSpec``. Raises InvalidValue that names the option."""
    given = {
        "test": ["CMD-SHELL", options.health_cmd] if options.health_cmd else [],
        "interval_s": _duration("--health-interval", options.health_interval),
        "timeout_s": _duration("--health-timeout", options.health_timeout),
        "retries": options.health_retries,
        "start_period_s": _duration("--health-start-period", options.health_start_period),
        "start_interval_s": _duration("--health-start-interval", options.health_start_interval),
    }
    if options.health_retries < 0:
        raise InvalidValue("--health-retries cannot be negative")
    if options.no_healthcheck:
        if any(given.values()):
            raise InvalidValue("--no-healthcheck conflicts with --health-* options")
        given["test"] = ["NONE"]
    return {
        "stop_signal": options.stop_signal,
        "stop_timeout_s": None if options.stop_timeout is None else float(options.stop_timeout),
        "health": HealthCheck(**given) if any(given.values()) else None,
    }


def _duration(option: str, text: str) -> float:
    """Seconds; 0 for nothing. Raises InvalidValue."""
    if not text:
        return 0.0
    from perdure.cli.fcrun._moment import duration

    return duration(text, option)
