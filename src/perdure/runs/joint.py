"""What all runs of some agents have spent together, of the budgets that this server has for that."""

from __future__ import annotations

from msgspec.structs import asdict

from perdure.context.log import ContextLog
from perdure.model import JointSpent
from perdure.runs.budgets import Budgets
from perdure.runs.clock import Clock


class JointBudgets:
    """In the order of the settings."""

    def __init__(self, context: ContextLog, budgets: Budgets, clock: Clock) -> None:
        self._context = context
        self._budgets = budgets
        self._clock = clock

    async def all(self) -> list[JointSpent]:
        now = self._clock.time()
        return [
            JointSpent(
                **asdict(joint),
                spent=await self._context.spent_jointly(joint.name, joint.period(now)),
                ends=joint.ends_at(now),
            )
            for joint in self._budgets.joint
        ]
