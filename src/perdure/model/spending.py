"""What runs spend on models, and how much they may."""

from __future__ import annotations

from perdure.model.values import Frozen


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
