"""Holds runs to their budgets: before a provider is asked, with what is in flight counted.

What has ended counts as the log has it, which may have one already that is in flight still. Of what is in flight only a
guess can be had, and nobody is refused for a guess: a call that may not be affordable beside the others waits until one
of them has ended, and is looked at again. So a run goes over its budget by no more than the last call that it could
afford to begin.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from perdure.context.log import ContextLog
from perdure.errors import OverBudget
from perdure.gateway.asked import Asked
from perdure.gateway.dialects.dialect import Usage, count
from perdure.gateway.prices import Price, Prices
from perdure.gateway.sizes import tokens_of
from perdure.model import Budget, Spent

OUTPUT_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")  # of requests, in whichever dialect


@dataclass
class _Open:
    """What a run has in flight."""

    guesses: dict[int, tuple[int, float]] = field(default_factory=dict)  # tokens and dollars of each
    ended: int = 0
    waiting: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Budgets:
    """Of all runs of one server."""

    def __init__(self, log: ContextLog, prices: Prices) -> None:
        self._log = log
        self._prices = prices
        self._open: dict[str, _Open] = {}
        self._numbers = 0

    @asynccontextmanager
    async def held(self, asked: Asked, budget: Budget) -> AsyncIterator[None]:
        """While the call is in flight. OverBudget: its run has spent what it may."""
        run_id = asked.call.run_id
        open_ = self._open.setdefault(run_id, _Open())
        self._numbers += 1
        number = self._numbers
        try:
            if budget.is_any:
                guess = await self._afford(asked, budget, open_)
            else:
                guess = 0, 0.0
            open_.guesses[number] = guess
            yield
        finally:
            if open_.guesses.pop(number, None) is not None:
                open_.ended += 1
                changed, open_.changed = open_.changed, asyncio.Event()
                changed.set()
            if not open_.guesses and not open_.waiting:
                self._open.pop(run_id, None)

    async def _afford(self, asked: Asked, budget: Budget, open_: _Open) -> tuple[int, float]:
        """What the call may cost, by a guess, once it is clear that it may be asked."""
        price = self._price(asked) if budget.usd else None
        open_.waiting += 1
        try:
            while True:
                ended, changed = open_.ended, open_.changed
                spent = (await self._log.head(asked.call.run_id)).spent
                if ended != open_.ended:
                    continue  # one of them has ended meanwhile, and may be in neither
                _check(asked, budget, spent)
                if not open_.guesses or _fits(budget, spent, open_):
                    return _guess(asked, spent, price)
                await changed.wait()
        finally:
            open_.waiting -= 1

    def _price(self, asked: Asked) -> Price:
        """OverBudget: nobody knows what it would cost."""
        found = [self._prices.of(place.model or asked.model) for place in asked.places]
        for place, price in zip(asked.places, found, strict=True):
            if price is None:
                model = place.model or asked.model
                message = f"this run has a budget in dollars, and the price of {model or 'that model'!r} is not known"
                instead = f"perdure budget {asked.call.run_id} --set usd=0"
                hint = f'On the host: [prices."{model}"] in settings.toml, or {instead}'
                raise OverBudget(message, hint=hint)
        return max((price for price in found if price is not None), key=lambda price: price.output)


def _check(asked: Asked, budget: Budget, spent: Spent) -> None:
    """OverBudget where what is certain is too much already."""
    told = name = ""
    if budget.tokens and spent.tokens >= budget.tokens:
        name, told = "tokens", f"{spent.tokens:,} of {budget.tokens:,} tokens"
    elif budget.calls and spent.calls >= budget.calls:
        name, told = "calls", f"{spent.calls:,} of {budget.calls:,} calls"
    elif budget.usd and spent.cost_usd >= budget.usd:
        name, told = "usd", f"${spent.cost_usd:.6g} of ${budget.usd:.6g}"
    if told:
        hint = f"Give it more with: perdure budget {asked.call.run_id} --set {name}=..."
        raise OverBudget(f"the run has spent what it may on models: {told}", hint=hint)


def _fits(budget: Budget, spent: Spent, open_: _Open) -> bool:
    """Whether there is something left also if all in flight cost what was guessed."""
    tokens = sum(tokens for tokens, _ in open_.guesses.values())
    dollars = sum(dollars for _, dollars in open_.guesses.values())
    return (
        (not budget.tokens or spent.tokens + tokens < budget.tokens)
        and (not budget.calls or spent.calls + len(open_.guesses) < budget.calls)
        and (not budget.usd or spent.cost_usd + dollars < budget.usd)
    )


def _guess(asked: Asked, spent: Spent, price: Price | None) -> tuple[int, float]:
    """As much as it may say at most, or as much as the run's calls have said until now."""
    limits = [count(asked.request.parameters.get(name)) for name in OUTPUT_LIMITS]
    said = max(limits) or (spent.output_tokens // spent.calls if spent.calls else 0)
    usage = Usage(input_tokens=tokens_of(len(asked.call.body)), output_tokens=said)
    return usage.input_tokens + usage.output_tokens, 0.0 if price is None else price.of(usage)
