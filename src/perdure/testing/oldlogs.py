"""What is in logs as older versions wrote them (``tests/golden``)."""

from __future__ import annotations

from perdure.context.log import ContextLog, NewEntry


async def check_turns(log: ContextLog) -> None:
    """What is in the logs of version 4 is counted, and what comes is counted on."""
    found = {head.run_id: (head.turns_asked, head.turns_replayed) for head in await log.heads()}
    assert found == {"turns": (4, 2), "fork": (1, 0), "gone": (0, 0), "empty": (0, 0)}
    await log.append("turns", [NewEntry(kind="model.started", key="main/9")], epoch=3)
    assert (await log.head("turns")).turns_asked == 5
    assert (await log.verify("turns")).branches == 2
