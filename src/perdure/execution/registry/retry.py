"""Again, a little later each time: for stores that stall, hang up, or are overloaded for a moment."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from perdure.errors import Unavailable

Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How long a store is waited for. In all it stays below the two minutes that a pager waits for a frame.

    ``request_timeout_s``: of connecting, and of each wait for more bytes; a whole answer may take ``answer_factor``
    times as long.
    """

    tries: int = 5
    first_pause_s: float = 0.1
    pause_max_s: float = 5.0
    request_timeout_s: float = 10.0
    answer_factor: int = 6
    pause: Callable[[float], None] = time.sleep


PATIENCE = Patience()


class Transient(Exception):
    """Worth another try: no answer, half an answer, 429, 500 and the like.

    ``reason`` says what it was; ``after_s`` how long the store asks to be left alone (Retry-After), 0 if it does not.
    """

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after_s = after_s


def retried(what: str, action: Callable[[], Result], patience: Patience = PATIENCE) -> Result:
    """The result of ``action``, tried again while it raises Transient. Raises Unavailable with the last reason."""
    reason = ""
    for attempt in range(patience.tries):
        try:
            return action()
        except Transient as error:
            reason, after_s = error.reason, error.after_s
        if attempt < patience.tries - 1:
            backoff_s = patience.first_pause_s * 2**attempt * random.uniform(0.5, 1.0)
            patience.pause(min(patience.pause_max_s, max(backoff_s, after_s)))
    raise Unavailable(
        f"{what}: {reason} ({patience.tries} tries)",
        hint="Look after it and the way to it, then try again: nothing was lost here.",
    )
