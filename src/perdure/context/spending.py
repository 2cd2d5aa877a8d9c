"""What the turns of a run have cost, counted as their entries are written. Pure."""

from __future__ import annotations

from typing import Any

from perdure.model import Spent

NANO = 1_000_000_000  # sums of money are whole numbers: billionths of a dollar
ENDS = ("model.committed", "model.aborted")
TOKENS = ("input_tokens", "output_tokens", "cached_tokens", "cache_written_tokens")
MOST_TOKENS, MOST_USD = 1 << 40, 1_000_000  # of one entry: whatever a session's program wrote fits into a sum
_OLDER = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}  # names of before


class Spending:
    """A sum."""

    __slots__ = ("calls", "cost", "estimated", "tokens", "unpriced")

    def __init__(self) -> None:
        self.calls = self.cost = self.unpriced = self.estimated = 0
        self.tokens = dict.fromkeys(TOKENS, 0)

    def count(self, kind: str, payload: Any) -> None:
        """An entry; nothing where it is not of a turn's end. What nobody answered is asked again, and counted then."""
        if kind not in ENDS or not isinstance(payload, dict):
            return
        if kind == "model.aborted" and ("answer" not in payload or payload.get("unasked")):
            return
        self.calls += 1
        usage = payload.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        for name in TOKENS:
            self.tokens[name] += _number(usage.get(name, usage.get(_OLDER.get(name, ""))))
        cost = payload.get("cost_usd")
        if isinstance(cost, int | float):
            self.cost += round(min(max(cost, 0), MOST_USD) * NANO)
        elif any(usage.values()):
            self.unpriced += 1
        self.estimated += bool(payload.get("estimated"))

    @property
    def is_any(self) -> bool:
        return self.calls > 0

    @property
    def row(self) -> tuple[int, ...]:
        """Its columns."""
        return (self.calls, *self.tokens.values(), self.cost, self.unpriced, self.estimated)


def spent_of(columns: tuple[int | None, ...]) -> Spent:
    """The sum of a row; there may be none."""
    calls, read, said, cached, written, cost, unpriced, estimated = (value or 0 for value in columns)
    return Spent(
        calls=calls,
        input_tokens=read,
        output_tokens=said,
        cached_tokens=cached,
        cache_written_tokens=written,
        cost_usd=cost / NANO,
        unpriced=unpriced,
        estimated=estimated,
    )


def _number(found: Any) -> int:
    return min(found, MOST_TOKENS) if isinstance(found, int) and found > 0 else 0
