"""The two roads to durability, and which one a run is on."""

from __future__ import annotations

from dataclasses import dataclass

from perdure.errors import Unsupported
from perdure.runs.ports import Machines
from perdure.runs.record import StartRequest


@dataclass(frozen=True)
class Roads:
    """``snapshot``: microVMs. ``replay``: worker processes, which begin again from the log; None: there are none."""

    snapshot: Machines
    replay: Machines | None = None

    def of(self, request: StartRequest) -> Machines:
        """The machines of a run. Unsupported: there are none of that kind."""
        if not request.is_replay:
            return self.snapshot
        if self.replay is None:
            raise Unsupported("this server has no workers: durability=replay is not to be had")
        return self.replay

    @property
    def all(self) -> list[Machines]:
        return [self.snapshot] if self.replay is None else [self.snapshot, self.replay]
