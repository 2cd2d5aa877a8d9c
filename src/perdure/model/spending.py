"""What runs spend on models, and how much they may."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from perdure.errors import InvalidValue
from perdure.model.values import Frozen

MOST = 10**15


class Spent(Frozen, frozen=True, kw_only=True):
    """What all turns of a run have cost, over all its branches. What is answered again from the log costs nothing, and
    a fork begins at nothing."""

    calls: int = 0  # that a provider has answered, or refused at last
    input_tokens: int = 0  # all that were read
    output_tokens: int = 0
    cached_tokens: int = 0  # of the input
    cache_written_tokens: int = 0  # of the input
    cost_usd: float = 0.0  # of the turns with a known price
    unpriced: int = 0  # turns that cost something, and nobody knows what
    estimated: int = 0  # turns whose provider told no tokens: theirs are estimates

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class Budget(Frozen, frozen=True, kw_only=True):
    """How much a run may spend. 0, in any field: as much as it likes; None: as somebody else says."""

    tokens: int | None = None  # read and said, together
    calls: int | None = None
    usd: float | None = None

    def over(self, other: Budget) -> Budget:
        """This one, where it says nothing the other one."""
        given = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return msgspec.structs.replace(other, **given)

    def check(self, where: str = "budget") -> None:
        """Raises InvalidValue naming the field; where: what its author wrote it in."""
        for name, value in msgspec.structs.asdict(self).items():
            if value is not None and not 0 <= value <= MOST:
                raise InvalidValue(f"{where}: {name} is {value}", hint=f"A number from 0 (no limit) to {MOST:g}.")

    @property
    def is_any(self) -> bool:
        return bool(self.tokens or self.calls or self.usd)


class JointBudget(Frozen, frozen=True, kw_only=True):
    """How much all runs of some agents may spend together. Days and months are those of UTC."""

    name: str  # a pattern of the agents' names
    per: Literal["", "day", "month"] = ""  # "": for ever
    budget: Budget

    def period(self, now: float) -> str:
        """``2026-11-27``, ``2026-11``, or ``""`` for ever; now: seconds since 1970."""
        if not self.per:
            return ""
        return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d" if self.per == "day" else "%Y-%m")

    def ends_at(self, now: float) -> float | None:
        """When it begins anew."""
        if not self.per:
            return None
        today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self.per == "day":
            return (today + timedelta(days=1)).timestamp()
        return (today.replace(day=1) + timedelta(days=32)).replace(day=1).timestamp()


class JointSpent(JointBudget, frozen=True, kw_only=True):
    """And what they have spent in this period."""

    spent: Spent
    ends: float | None = None  # seconds since 1970: when it begins anew; None: never
