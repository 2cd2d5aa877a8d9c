"""Holds runs to their budgets, and to those that they have jointly: before a provider is asked, with what is in flight
counted.

What has ended counts as the log has it, which may have one already that is in flight still. Of what is in flight only a
guess can be had, and nobody is refused for a guess: a call that may not be affordable beside the others waits until one
of them has ended, and is looked at again. So a budget is passed by no more than the last call that it could afford to
begin; a joint one by that of each of the servers on one database, which do not see what the others have in flight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from perdure.context.log import ContextLog, NewEntry
from perdure.context.spending import ENDS
from perdure.gateway.allowances import Allowance, OfAgents, OfRun
from perdure.gateway.asked import Asked
from perdure.gateway.dialects.dialect import Usage, count
from perdure.gateway.prices import Price, Prices
from perdure.gateway.sizes import tokens_of
from perdure.model import Budget, Spent

OUTPUT_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")  # of requests, in whichever dialect


@dataclass
class _Open:
    """What a run, or all of some agents, have in flight."""

    guesses: dict[int, tuple[int, float]] = field(default_factory=dict)  # tokens and dollars of each
    ended: int = 0
    waiting: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class _Before(NamedTuple):
    """How that was before the log was asked."""

    changed: asyncio.Event
    guesses: dict[int, tuple[int, float]]
    ended: int

    def is_missing_some(self, now: _Open) -> bool:
        """Something has begun since, and ended, too: it may be in no sum and in no guess."""
        return now.ended - self.ended > len(self.guesses.keys() - now.guesses.keys())


class Budgets:
    """Of all runs of one server."""

    def __init__(self, log: ContextLog, prices: Prices, now: Callable[[], float] = time.time) -> None:
        self._log = log
        self._prices = prices
        self._now = now
        self._open: dict[tuple[str, str], _Open] = {}
        self._numbers = 0

    def counted(self, asked: Asked, entries: Sequence[NewEntry]) -> list[NewEntry]:
        """So that the ends of turns among them count in the joint budgets of their run, in the period that it is."""
        joint = tuple((one.name, one.period(self._now())) for one in asked.joint)
        return [msgspec.structs.replace(one, joint=joint) if one.kind in ENDS else one for one in entries]

    @asynccontextmanager
    async def held(self, asked: Asked, budget: Budget) -> AsyncIterator[None]:
        """While the call is in flight. budget: of its run. OverBudget: that is spent, or a joint one is."""
        keys = [allowance.key for allowance in self._allowances(asked, budget)]
        opens = [self._open.setdefault(key, _Open()) for key in keys]
        self._numbers += 1
        number = self._numbers
        try:
            guess = await self._afford(asked, budget, opens)
            for open_ in opens:
                open_.guesses[number] = guess
            yield
        finally:
            for key, open_ in zip(keys, opens, strict=True):
                if open_.guesses.pop(number, None) is not None:
                    open_.ended += 1
                    changed, open_.changed = open_.changed, asyncio.Event()
                    changed.set()
                if not open_.guesses and not open_.waiting:
                    self._open.pop(key, None)

    def _allowances(self, asked: Asked, budget: Budget) -> list[Allowance]:
        """Of its run, and of all of its agent; as of now."""
        run_id, now = asked.call.run_id, self._now()
        return [OfRun(run_id, budget, self._log), *(OfAgents(joint, now, self._log) for joint in asked.joint)]

    async def _afford(self, asked: Asked, budget: Budget, opens: Sequence[_Open]) -> tuple[int, float]:
        """What the call may cost, by a guess, once it is clear that it may be asked."""
        if not budget.is_any and not asked.joint:
            return 0, 0.0
        price = self._price(asked, self._allowances(asked, budget))
        for open_ in opens:
            open_.waiting += 1
        try:
            while True:
                pairs = zip(self._allowances(asked, budget), opens, strict=True)
                limits = [(allowance, open_) for allowance, open_ in pairs if allowance.budget.is_any]
                before = [_Before(open_.changed, dict(open_.guesses), open_.ended) for _, open_ in limits]
                spent = [await allowance.spent() for allowance, _ in limits]
                for (allowance, _), has in zip(limits, spent, strict=True):
                    _check(allowance, has)
                if any(was.is_missing_some(open_) for (_, open_), was in zip(limits, before, strict=True)):
                    continue
                full: asyncio.Event | None = None
                for (allowance, open_), has, was in zip(limits, spent, before, strict=True):
                    in_flight = was.guesses | open_.guesses  # what has ended meanwhile may not be in the sum yet
                    if in_flight and not _fits(allowance.budget, has, in_flight.values()):
                        full = was.changed
                        break
                if full is None:
                    return _guess(asked, spent[0], price)
                await full.wait()  # of one that has ended meanwhile it is set
        finally:
            for open_ in opens:
                open_.waiting -= 1

    def _price(self, asked: Asked, allowances: Sequence[Allowance]) -> Price | None:
        """None: nobody wants to know. OverBudget: nobody knows what it would cost."""
        in_dollars = next((allowance for allowance in allowances if allowance.budget.usd), None)
        if in_dollars is None:
            return None
        found = [self._prices.of(place.model or asked.model) for place in asked.places]
        for place, price in zip(asked.places, found, strict=True):
            if price is None:
                raise in_dollars.unpriced(place.model or asked.model)
        return max((price for price in found if price is not None), key=lambda price: price.output)


def _check(allowance: Allowance, spent: Spent) -> None:
    """OverBudget where what is certain is too much already."""
    budget = allowance.budget
    if budget.tokens and spent.tokens >= budget.tokens:
        raise allowance.over("tokens", f"{spent.tokens:,} of {budget.tokens:,} tokens")
    if budget.calls and spent.calls >= budget.calls:
        raise allowance.over("calls", f"{spent.calls:,} of {budget.calls:,} calls")
    if budget.usd and spent.cost_usd >= budget.usd:
        raise allowance.over("usd", f"${spent.cost_usd:.6g} of ${budget.usd:.6g}")


def _fits(budget: Budget, spent: Spent, in_flight: Collection[tuple[int, float]]) -> bool:
    """Whether there is something left also if all in flight cost what was guessed."""
    tokens = sum(tokens for tokens, _ in in_flight)
    dollars = sum(dollars for _, dollars in in_flight)
    return (
        (not budget.tokens or spent.tokens + tokens < budget.tokens)
        and (not budget.calls or spent.calls + len(in_flight) < budget.calls)
        and (not budget.usd or spent.cost_usd + dollars < budget.usd)
    )


def _guess(asked: Asked, spent: Spent, price: Price | None) -> tuple[int, float]:
    """As much as it may say at most, or as much as the run's calls have said until now."""
    limits = [count(asked.request.parameters.get(name)) for name in OUTPUT_LIMITS]
    said = max(limits) or (spent.output_tokens // spent.calls if spent.calls else 0)
    usage = Usage(input_tokens=tokens_of(len(asked.call.body)), output_tokens=said)
    return usage.input_tokens + usage.output_tokens, 0.0 if price is None else price.of(usage)
