"""Perdure: durable AI agents.

Importing this package imports nothing else: inside a guest only ``perdure.agent`` exists beside it, and the command
lines must start at once.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing takes long to import, and nothing here needs it to run
if TYPE_CHECKING:
    from typing import Any

    from perdure.agent import Cancelled as Cancelled
    from perdure.agent import Context as Context
    from perdure.agent import Field as Field
    from perdure.agent import Tool as Tool
    from perdure.agent import ToolCall as ToolCall
    from perdure.agent import Turn as Turn
    from perdure.agent import Verdict as Verdict
    from perdure.agent import agent as agent

__version__ = "0.1.0"
__all__ = ["agent", "Cancelled", "Context", "Field", "Tool", "ToolCall", "Turn", "Verdict"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import perdure.agent

        return getattr(perdure.agent, name)
    raise AttributeError(f"module 'perdure' has no attribute {name!r}")
