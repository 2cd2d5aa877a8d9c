"""Perdure: durable AI agents.

Importing this package imports nothing else: inside a guest only ``perdure.agent`` exists beside it, and the command
lines must start at once.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing takes long to import, and nothing here needs it to run
if TYPE_CHECKING:
    from perdure.agent import Agent as Agent
    from perdure.agent import AsyncContext as AsyncContext
    from perdure.agent import Cancelled as Cancelled
    from perdure.agent import Context as Context
    from perdure.agent import Field as Field
    from perdure.agent import Forks as Forks
    from perdure.agent import Secret as Secret
    from perdure.agent import Tool as Tool
    from perdure.agent import ToolCall as ToolCall
    from perdure.agent import Turn as Turn
    from perdure.agent import Verdict as Verdict
    from perdure.agent import agent as agent

__version__ = "0.1.0"
__all__ = [
    "agent",
    "Agent",
    "AsyncContext",
    "Cancelled",
    "Context",
    "Field",
    "Forks",
    "Secret",
    "Tool",
    "ToolCall",
    "Turn",
    "Verdict",
]

if not TYPE_CHECKING:  # it would take any name for one that is there

    def __getattr__(name):
        if name in __all__:
            import perdure.agent

            return getattr(perdure.agent, name)
        raise AttributeError(f"module 'perdure' has no attribute {name!r}")
