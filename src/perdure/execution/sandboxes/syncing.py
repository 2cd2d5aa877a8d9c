"""What a guest has written, brought to its disk before its machine is ended."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from perdure.errors import PerdureError

if TYPE_CHECKING:
    from perdure.execution.sandboxes.life import Life

SYNC_BUDGET_S = 10.0  # of one attempt
SYNC_LIMIT_S = 120.0  # a slow disk and much to write; after that files are lost, and the record says so

_log = logging.getLogger(__name__)


async def sync(life: Life) -> str:
    """Bring the guest's files to its disk: they are kept for the next start. What went wrong, or nothing."""
    if life.session is None or life.machine is None:
        return ""
    problem, deadline = "they take too long", time.monotonic() + SYNC_LIMIT_S
    while time.monotonic() < deadline:
        try:
            async with asyncio.timeout(2 * SYNC_BUDGET_S):
                done = await life.machine.outlives(life.session.quiesce(SYNC_BUDGET_S))
        except (PerdureError, TimeoutError) as error:
            problem = str(error) or type(error).__name__
            break
        if done.synced:
            return ""
    _log.warning("sync of %s: %s", life.id, problem)
    return f"its last files may not be on its disk: {problem}"
