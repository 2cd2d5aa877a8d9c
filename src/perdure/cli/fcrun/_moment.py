"""Moments and durations as people type them: seconds since the epoch, RFC 3339, how long ago; 1h30m."""

from __future__ import annotations

import datetime
import re
import time

from perdure.errors import InvalidValue

_UNITS = {"us": 1e-6, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:[um]s|[smhd]))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)([um]s|[smhd])")


def duration(text: str, option: str) -> float:
    """Seconds: of ``1h30m``, ``1.5h``, ``300ms``, as Go writes them, with days too; ``0`` needs no unit. ``option`` is
    where it was typed. Raises InvalidValue."""
    if text == "0":
        return 0.0
    if not _DURATION.fullmatch(text):
        raise InvalidValue(f"{option}: {text!r} is no duration", hint="Write 30s, 5m or 1h30m.")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def moment(text: str, option: str) -> float:
    """Seconds since the epoch. ``option`` is where it was typed. Raises InvalidValue."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if _DURATION.fullmatch(text):
        return time.time() - duration(text, option)
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InvalidValue(
            f"{option}: {text!r} is no time", hint="Write 10m, 1700000000 or 2030-01-31T12:00:00Z."
        ) from None
