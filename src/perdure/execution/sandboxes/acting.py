"""For whom something is done: whose sandboxes are found then, and whose those are that it makes.

The node's border says so for the task of a request; what that starts, in tasks and threads, inherits it. Where nobody
has said anything it is the node itself, which sees everything. So whoever looks for a sandbox need not ask who may.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

import msgspec

from perdure.model import SandboxSpec

TOUCHED_MAX = 64


@dataclass(frozen=True)
class Acting:
    """``owner``: finds only what belongs to it, and owns what it makes; None: finds everything. ``is_trusted``: is
    shown where calls go, with the token in it, and may say so. ``touched``: ids of the sandboxes it found or made."""

    owner: str | None = None
    is_trusted: bool = True
    touched: list[str] = field(default_factory=list)

    def sees(self, owner: str) -> bool:
        """Whether what belongs to ``owner`` is there at all."""
        return self.owner is None or owner == self.owner

    def touch(self, sandbox_id: str) -> None:
        """Remember that it had to do with this sandbox (for the audit)."""
        if sandbox_id not in self.touched and len(self.touched) < TOUCHED_MAX:
            self.touched.append(sandbox_id)

    def shown(self, spec: SandboxSpec) -> SandboxSpec:
        """The spec without what is not for it to see."""
        if self.is_trusted or spec.calls is None:
            return spec
        return msgspec.structs.replace(spec, calls=None)


_current: ContextVar[Acting | None] = ContextVar("acting", default=None)


def current() -> Acting:
    """Whoever this task acts for."""
    return _current.get() or Acting()


def begin(acting: Acting) -> None:
    """This task, and what it starts from now on, acts for somebody."""
    _current.set(acting)
