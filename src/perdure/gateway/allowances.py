"""How much may be spent, and is: by a run, and by all runs of some agents. Each has its own words for too much."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from perdure.context.log import ContextLog
from perdure.errors import OverBudget
from perdure.model import Budget, JointBudget, Spent


class Allowance(Protocol):
    @property
    def key(self) -> tuple[str, str]:
        """Whose it is."""
        ...

    @property
    def budget(self) -> Budget: ...

    async def spent(self) -> Spent:
        """As the log has it."""
        ...

    def over(self, limit: str, told: str) -> OverBudget:
        """limit: the budget's field; told: what was spent of how much."""
        ...

    def unpriced(self, model: str) -> OverBudget:
        """It is in dollars, and nobody knows what that costs."""
        ...


@dataclass(frozen=True)
class OfRun:
    run_id: str
    budget: Budget
    log: ContextLog

    @property
    def key(self) -> tuple[str, str]:
        return "run", self.run_id

    async def spent(self) -> Spent:
        return (await self.log.head(self.run_id)).spent

    def over(self, limit: str, told: str) -> OverBudget:
        hint = f"Give it more with: perdure budget {self.run_id} --set {limit}=..."
        return OverBudget(f"the run has spent what it may on models: {told}", hint=hint)

    def unpriced(self, model: str) -> OverBudget:
        message = f"this run has a budget in dollars, and the price of {model or 'that model'!r} is not known"
        instead = f"perdure budget {self.run_id} --set usd=0"
        return OverBudget(message, hint=f'On the host: [prices."{model}"] in settings.toml, or {instead}')


@dataclass(frozen=True)
class OfAgents:
    joint: JointBudget
    now: float  # seconds since 1970
    log: ContextLog

    @property
    def key(self) -> tuple[str, str]:
        return "agents", self.joint.name

    @property
    def budget(self) -> Budget:
        return self.joint.budget

    async def spent(self) -> Spent:
        return await self.log.spent_jointly(self.joint.name, self.joint.period(self.now))

    def over(self, limit: str, told: str) -> OverBudget:
        ends, period = self.joint.ends_at(self.now), self.joint.period(self.now)
        within = f" in {period} (UTC)" if period else ""
        message = f"all runs of {self.joint.name!r} together have spent what they may on models{within}: {told}"
        more = (
            f'raise {limit} of [budgets."{self.joint.name}".all] in settings.toml on the host, and restart the server'
        )
        if ends is None:
            return OverBudget(message, hint=more[0].upper() + more[1:])
        return OverBudget(
            message, hint=f"It begins anew at {datetime.fromtimestamp(ends, UTC):%Y-%m-%d %H:%M} UTC; or {more}"
        )

    def unpriced(self, model: str) -> OverBudget:
        whose = f"all runs of {self.joint.name!r} together have a budget in dollars"
        hint = f'On the host: [prices."{model}"] in settings.toml'
        return OverBudget(f"{whose}, and the price of {model or 'that model'!r} is not known", hint=hint)
