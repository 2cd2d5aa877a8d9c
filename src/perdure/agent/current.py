"""The context of the agent that this process runs, for integrations whose framework hands none on."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from perdure.agent.context import Context
    from perdure.agent.tasks import AsyncContext

context: Context | AsyncContext | None = None
