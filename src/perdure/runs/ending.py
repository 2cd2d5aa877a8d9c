"""How a run is ended from outside: its program is told, has some time to clean up, and then it ends.

A program is told once: its open waits are completed with the outcome ``cancelled``, or, where it has none, its next
new call is answered so. Whatever it asks after that is its clean-up, and is answered as ever. Both are entries of the
log, so a machine that is lost meanwhile and lives through it again is told at the same place.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.context.log import NewEntry
from perdure.errors import Cancelled
from perdure.runs.asked import Asked, last

# What belongs to a call that was told already, or to the end itself.
_SILENT = ("begin", "history", "mismatch", "step/end", "wait/withdraw", "complete", "fail")
_BY_ITSELF = "auto"  # the lane of programs that know nothing of lanes, nor of this


def told(asked: Asked) -> Cancelled:
    """What the program is told."""
    ending = asked.run.record.ending
    message = str(ending.error["message"]) if ending else "the run was cancelled"
    return Cancelled(message, hint="Clean up and return; what this run asks from now on is answered for a while.")


async def tell(asked: Asked, path: str, *, is_model: bool) -> None:
    """Raises Cancelled where this call is the one that is told that the run is to end."""
    record = asked.run.record
    if record.ending is None or record.source is None or path in _SILENT or asked.call.lane == _BY_ITSELF:
        return

    async def act() -> bool:
        entries, ending = await asked.entries(), asked.run.record.ending
        if ending is None:
            return False
        if last(entries, "ending.told"):
            return True
        if ending.told or (_answered(entries) if is_model else entries):
            return False
        entry = NewEntry(kind="ending.told", key=asked.key, payload={"request": asked.request})
        await asked.run.write(entry, epoch=asked.call.epoch, ending=msgspec.structs.replace(ending, told=True))
        return True

    if await asked.warm(act):
        raise told(asked)


def _answered(entries: list[Any]) -> bool:
    """Whether the log has the answer of this model call; one that a provider was asked for only is given up."""
    aborted = last(entries, "model.aborted")
    return last(entries, "model.committed") is not None or bool(aborted and aborted.payload.get("answer"))
