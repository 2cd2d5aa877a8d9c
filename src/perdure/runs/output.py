"""What a run's program wrote, from a position on, through everything that may become of its machine.

A position is a *life* and an offset in bytes. A life is one log of the program's output: a sandbox's, through its
sleeps and restores; the workers' of a run. Where the run has another one now, it is told from its beginning.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from perdure.context.log import ContextLog, Head
from perdure.errors import NotFound, Unavailable
from perdure.model import OutputPiece
from perdure.runs.ports import Machines
from perdure.runs.record import Record, from_head
from perdure.runs.roads import Roads
from perdure.runs.states import TERMINAL

KEPT_BYTES = 16 * 1024  # of a run that has ended
KEPT_LINES = 1000
AGAIN_S = 0.5
LOOK_S = 5.0


async def tail(machines: Machines, sandbox_id: str) -> dict[str, Any]:
    """What is kept in the record of a run that has ended. NotFound."""
    kept, life, end = b"", "", 0
    async with aclosing(machines.printed(sandbox_id, tail=KEPT_LINES)) as pieces:
        async for piece in pieces:
            kept, life, end = (kept + piece.data)[-KEPT_BYTES:], piece.life, piece.end
    text = kept.decode("utf-8", "replace")
    return {"output": text, "output_life": life, "output_end": end} if kept else {}


async def follow(
    context: ContextLog, roads: Roads, run_id: str, life: str, offset: int, *, tail: int | None = None, live: bool
) -> AsyncGenerator[OutputPiece]:
    """The pieces from a position on, or the last ``tail`` lines; ``live``: and on, until the run has ended."""
    while True:
        head = await context.head(run_id)
        record = from_head(head)
        ended = record.state in TERMINAL
        try:
            async with aclosing(_printed(roads, record, life, offset, live and not ended, tail)) as pieces:
                async for piece in pieces:
                    life, offset, tail = piece.life, piece.end, None
                    yield piece
        except NotFound:  # it was removed after the run's end, or for another one
            ended = from_head(await context.head(run_id)).state in TERMINAL
        except Unavailable:  # the node is away: where it was when it is back
            if not live:
                raise
            await asyncio.sleep(AGAIN_S)
            continue
        if ended:
            if (rest := _kept(from_head(await context.head(run_id)), life, offset, tail)) is not None:
                yield rest
            return
        if not live:
            return
        await _moved(context, head)


async def _printed(
    roads: Roads, record: Record, life: str, offset: int, live: bool, tail: int | None
) -> AsyncGenerator[OutputPiece]:
    if not record.sandbox_id or record.released:
        return
    machines = roads.of(record.request)
    async with aclosing(machines.printed(record.sandbox_id, life, offset, follow=live, tail=tail)) as pieces:
        async for piece in pieces:
            yield piece


def _kept(record: Record, life: str, offset: int, tail: int | None) -> OutputPiece | None:
    """What the record has of what comes after a position."""
    data, end = record.output.encode(), record.output_end
    if tail is not None:
        data = b"".join(data.splitlines(keepends=True)[-tail:]) if tail else b""
    elif life in ("", record.output_life):
        data = data[-min(end - offset, len(data)) :] if offset < end else b""
    begin = max(end - len(data), 0)  # what was no text takes more bytes as such
    if not data:
        return None
    return OutputPiece(life=record.output_life, offset=begin, stream="stdout", at=begin, data=data)


async def _moved(context: ContextLog, head: Head) -> None:
    """Once the run's log has more than it had; or after a while, as it may have gone another way since."""
    with suppress(TimeoutError):
        async with (
            asyncio.timeout(LOOK_S),
            # a generator, though its Protocol says iterator
            aclosing(context.follow(head.run_id, after=head.seq, expand=False)) as entries,  # type: ignore[type-var]
        ):
            async for _ in entries:
                return
