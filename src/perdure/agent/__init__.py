"""What agent authors import; the same code in a guest and outside. Standard library only, and little of it.

An agent is a function that takes a ``Context`` first::

    from perdure import Context, agent

    @agent(image="python:3.12-slim", memory_mib=512)
    def research(ctx: Context, topic: str) -> str:
        turn = ctx.chat(f"What is {topic}?")
        verdict = ctx.approval("Publish this?", show=turn.text, timeout="3d")
        return turn.text if verdict.approved else verdict.comment

An ``async def`` agent takes an ``AsyncContext``: the same methods, awaited. Under emulation every import counts: no
``typing``, ``dataclasses``, ``inspect`` or ``asyncio`` is imported unless the author does.
"""

from __future__ import annotations

import sys

from perdure.agent.context import Context as Context
from perdure.agent.declaration import Agent as Agent
from perdure.agent.declaration import agent as agent
from perdure.agent.secret import Secret as Secret
from perdure.agent.tools import Tool as Tool
from perdure.agent.values import Cancelled as Cancelled
from perdure.agent.values import Field as Field
from perdure.agent.values import Forks as Forks
from perdure.agent.values import ToolCall as ToolCall
from perdure.agent.values import Turn as Turn
from perdure.agent.values import Verdict as Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from perdure.agent.tasks import AsyncContext as AsyncContext

__all__ = [
    "agent",
    "Agent",
    "Context",
    "AsyncContext",
    "Cancelled",
    "Field",
    "Forks",
    "Secret",
    "Tool",
    "ToolCall",
    "Turn",
    "Verdict",
]


class _Module(type(sys)):  # type: ignore[misc]  # the type of modules, without importing types
    """``from perdure import agent`` finds this package, once it was imported: so the package is the decorator too."""

    def __call__(self, *function: Any, **options: Any) -> Any:
        return agent(*function, **options)


sys.modules[__name__].__class__ = _Module


if not TYPE_CHECKING:  # it would take any name for one that is there

    def __getattr__(name):
        if name == "AsyncContext":  # imports asyncio
            from perdure.agent.tasks import AsyncContext

            return AsyncContext
        raise AttributeError(f"module 'perdure.agent' has no attribute {name!r}")
