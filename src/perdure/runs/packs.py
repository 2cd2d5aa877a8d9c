"""Packs are made before the run that has them: what is wrong with one is said while nothing was begun."""

from __future__ import annotations

from perdure.context.log import ContextLog
from perdure.runs import pack
from perdure.runs.record import StartRequest


async def of(context: ContextLog, request: StartRequest) -> str | None:
    """The digest of the pack that a run of this request has; None: its file is all. NotFound: the pack that it names is
    not in the log. ProtocolError: that is none."""
    found = await pack.read(context, request.pack)
    if request.modules:
        found = pack.Pack(modules=await pack.keep_all(context, request.modules))
    return await context.put_blob(found.encoded()) if found else None
