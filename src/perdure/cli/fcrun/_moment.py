"""Moments as people type them: seconds since the epoch, RFC 3339, or how long ago."""

from __future__ import annotations

import datetime
import re
import time

from perdure.errors import InvalidValue

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def moment(text: str, option: str) -> float:
    """Seconds since the epoch. ``option`` is where it was typed. Raises InvalidValue."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
        return time.time() - sum(float(number) * _UNITS[unit] for number, unit in parts)
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InvalidValue(
            f"{option}: {text!r} is no time", hint="Write 10m, 1700000000 or 2030-01-31T12:00:00Z."
        ) from None
