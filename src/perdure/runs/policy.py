"""When a run's machine sleeps, and when it is captured while it goes on. What a run does not say, the server says.

A run sleeps when nothing but waits is open (``idle_grace_s``), or nothing but waits and model calls of which no byte
comes (``think_grace_s``): the gateway holds the provider's connection meanwhile, and the next byte wakes it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.errors import InvalidValue
from perdure.model import Frozen

NEVER_S = 1e10  # as a grace: 300 years


class Policy(Frozen, frozen=True, kw_only=True):
    """None, in any field: as the server has it. Graces are in seconds; ``NEVER_S`` of them never pass."""

    idle_grace_s: float | None = None  # only waits are open for so long: suspend
    think_grace_s: float | None = None  # the same, and models think
    checkpoint_turns: int | None = None  # a checkpoint after so many turns; 0: none
    checkpoint_s: float | None = None  # a checkpoint after so many seconds of running; 0: none
    snapshots_kept: int | None = None  # the newest so many, and those that somebody keeps; 0: all

    def check(self) -> None:
        """Raises InvalidValue naming the field."""
        for name, value in self.to_json().items():
            if value is not None and not 0 <= value <= NEVER_S:
                hint = f"Times are in seconds; {NEVER_S:g} of them never pass."
                raise InvalidValue(f"policy: {name} is {value}: not a number from 0 to {NEVER_S:g}", hint=hint)

    def over(self, default: Policy) -> Policy:
        """This policy, where it says nothing the other one."""
        given = {name: value for name, value in self.to_json().items() if value is not None}
        return msgspec.structs.replace(default, **given)

    def to_json(self) -> dict[str, Any]:
        return msgspec.structs.asdict(self)


DEFAULT = Policy(idle_grace_s=1.0, think_grace_s=60.0, checkpoint_turns=0, checkpoint_s=0.0, snapshots_kept=8)
