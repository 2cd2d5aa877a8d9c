"""Moments on the wall clock, as programs name them. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from perdure.errors import InvalidValue

LATEST_S = 1e11  # some 3,000 years


def moment(value: float | str, what: str) -> float:
    """ISO 8601 with its time zone, or seconds since 1970, in seconds since 1970. InvalidValue names ``what``."""
    if isinstance(value, str):
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            hint = "Write 2026-05-01T09:00:00Z, 2026-05-01T09:00+02:00, or seconds since 1970."
            raise InvalidValue(f"{what} is not a moment: {value!r}", hint=hint) from None
        if found.tzinfo is None:
            raise InvalidValue(f"{what} has no time zone: {value!r}", hint="End it with Z for UTC, or with +02:00.")
        return found.timestamp()
    if not math.isfinite(value) or not 0 <= value <= LATEST_S:
        raise InvalidValue(f"{what} is not a number of seconds since 1970: {value}", hint="Milliseconds? Divide them.")
    return float(value)


def said(at: float) -> str:
    """A moment as people read it."""
    return datetime.fromtimestamp(min(max(at, 0.0), LATEST_S), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
