"""How much runs may spend on models that say nothing else (``model.Budget``). The gateway holds them to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from perdure.model import Budget


@dataclass(frozen=True)
class Budgets:
    """``usual``: of all; ``by_agent``: by pattern of an agent's name, the first that fits."""

    usual: Budget = field(default_factory=Budget)
    by_agent: Mapping[str, Budget] = field(default_factory=dict)

    def of(self, names: Sequence[str]) -> Budget:
        """That of an agent or command, by any of its names."""
        for pattern, budget in self.by_agent.items():
            if any(fnmatchcase(name, pattern) for name in names):
                return budget.over(self.usual)
        return self.usual
