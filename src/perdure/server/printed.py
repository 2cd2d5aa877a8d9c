"""What a sandbox's main process wrote, asked of this host's node and followed there."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import quote

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector

from perdure.errors import PerdureError, Unavailable, from_json
from perdure.formats import logs
from perdure.model import OutputPiece

STREAMS = {logs.STDOUT: "stdout", logs.STDERR: "stderr"}


async def printed(
    node: Path, sandbox_id: str, offset: int, *, follow: bool, tail: int | None = None
) -> AsyncGenerator[OutputPiece]:
    """From byte ``offset`` of its log on, or the last ``tail`` lines; with ``follow`` until it has exited. ``node``:
    its socket. Unavailable: the node is away, or went away."""
    query = {"positions": "1", "follow": str(int(follow))}
    query |= {"offset": str(offset)} if tail is None else {"tail": str(tail)}
    url = f"http://node/v1/sandboxes/{quote(sandbox_id)}/logs"
    decoder = logs.Decoder()
    try:
        async with (
            ClientSession(connector=UnixConnector(str(node)), timeout=ClientTimeout(total=None)) as session,
            session.get(url, params=query) as answer,
        ):
            if answer.status >= 400:
                raise _refusal(await answer.read())
            # A node of a version that has no positions tells all that it has.
            at, offset = {logs.STDOUT: 0, logs.STDERR: 0}, int(answer.headers.get("Log-Offset", "0"))
            async for chunk in answer.content.iter_any():
                for record in decoder.feed(chunk):
                    if record.stream == logs.POSITION:
                        at = logs.decode_position(record.data)
                        continue
                    where, stream = at[record.stream], STREAMS[record.stream]
                    yield OutputPiece(life=sandbox_id, offset=offset, stream=stream, at=where, data=record.data)
                    at[record.stream] += len(record.data)
                    offset += len(record.data)
    except (ClientError, OSError) as error:
        raise Unavailable(f"the node does not answer: {error!r}") from error


def _refusal(content: bytes) -> PerdureError:
    try:
        return from_json(msgspec.json.decode(content)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return Unavailable("the node gave an answer that is none")
