"""How often a run that failed is tried again."""

from __future__ import annotations

from perdure.errors import InvalidValue
from perdure.model.values import Frozen

FAILURES = ("agent-failed", "program-failed", "machine-failed", "timed-out")
ANY_FAILURE = "any"
LONGEST_S = 366 * 86400.0


class Retry(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often, and after which pauses: ``delay_s``, then ``factor`` times as long, at most ``max_delay_s``."""

    attempts: int  # in all, the first one counts
    delay_s: float = 1.0
    factor: float = 2.0
    max_delay_s: float = 300.0
    jitter: float = 0.1  # each pause is longer by up to this part of it

    def check(self, kind: str, where: str = "retry") -> None:
        """Raises InvalidValue naming the field; where: what its author wrote it in."""
        known = (*FAILURES, ANY_FAILURE)
        if kind not in known:
            raise InvalidValue(f"{where}: no such kind of failure: {kind!r}", hint=f"Known are {', '.join(known)}.")
        bounds = {"attempts": (1, 1000), "delay_s": (0, LONGEST_S), "factor": (1, 100), "max_delay_s": (0, LONGEST_S)}
        for name, (least, most) in {**bounds, "jitter": (0, 10)}.items():
            if not least <= getattr(self, name) <= most:
                message = f"{where}: {kind}: {name} is {getattr(self, name):g}"
                raise InvalidValue(message, hint=f"It is from {least:g} to {most:g}.")
