"""Again, a little later each time: for stores that stall, hang up, or are overloaded for a moment."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from perdure.errors import Unavailable

TRIES = 6
FIRST_PAUSE_S = 0.1
PAUSE_MAX_S = 5.0
REQUEST_TIMEOUT_S = 10.0  # without a byte

Result = TypeVar("Result")


class Transient(Exception):  # noqa: N818 - not an error until it stays
    """Worth another try: no answer, half an answer, 429, 500 and the like. The argument says what it was."""


def retried(what: str, action: Callable[[], Result], pause: Callable[[float], None] = time.sleep) -> Result:
    """The result of ``action``, tried up to TRIES times while it raises Transient. Raises Unavailable."""
    for attempt in range(TRIES):
        try:
            return action()
        except Transient as error:
            reason = str(error)
        if attempt < TRIES - 1:
            pause(min(PAUSE_MAX_S, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0))
    raise Unavailable(
        f"{what}: {reason}, {TRIES} times", hint="Look after the store and the way to it; nothing was lost here."
    )
