"""How much runs may spend that say nothing else, and how much together. The gateway holds them to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from perdure.model import Budget, JointBudget


@dataclass(frozen=True)
class Budgets:
    """``usual``: of all; ``by_agent``: by pattern of an agent's name, the first that fits. ``joint``: of all runs of
    the agents whose names fit, together; each of them that fits counts."""

    usual: Budget = field(default_factory=Budget)
    by_agent: Mapping[str, Budget] = field(default_factory=dict)
    joint: Sequence[JointBudget] = ()

    def of(self, names: Sequence[str]) -> Budget:
        """That of an agent or command, by any of its names."""
        for pattern, budget in self.by_agent.items():
            if _fits(pattern, names):
                return budget.over(self.usual)
        return self.usual

    def joint_of(self, names: Sequence[str]) -> list[JointBudget]:
        return [joint for joint in self.joint if _fits(joint.name, names)]


def _fits(pattern: str, names: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)
