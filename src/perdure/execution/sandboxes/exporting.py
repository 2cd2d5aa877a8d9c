"""All files of a sandbox as one tar: the layers of its image, which are here, and what its guest says that changed.

Only the changes cross the channel. Where the layers are not here (an image that came with a snapshot) the guest sends
everything.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import IO, Any, cast

from perdure.errors import Unsupported
from perdure.execution.sandboxes import reading, trees
from perdure.execution.sandboxes.committing import changes_of
from perdure.execution.sandboxes.sandbox import Sandbox

PIECE_BYTES = 1 << 20
PIECES = 4  # that wait for who takes them


async def export(sandbox: Sandbox) -> AsyncGenerator[bytes, None]:
    """The pieces of the tar. Raises what ``reading`` does, ImageInvalid, NoSpace."""
    images = sandbox.rooms.images
    try:
        base = await asyncio.to_thread(images.parts, sandbox.record.image_digest)
    except Unsupported:
        async with reading.tree_of(sandbox) as tree, aclosing(trees.whole(tree.whole())) as pieces:
            async for data in pieces:
                yield data
        return
    async with changes_of(sandbox) as layer:
        out = _Pieces()

        def write() -> None:
            with images.holding_blobs(), io.BufferedWriter(out, PIECE_BYTES) as buffered:
                images.write_tar([*base.layers, layer], cast("IO[bytes]", buffered))

        writing = asyncio.ensure_future(asyncio.to_thread(write))
        writing.add_done_callback(lambda _: out.end())
        try:
            while data := await out.next():
                yield data
            await writing
        finally:
            out.abandon()
            await asyncio.gather(writing, return_exceptions=True)


class _Pieces(io.RawIOBase):
    """A file that a thread writes, whose pieces the loop takes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = asyncio.Semaphore(PIECES)
        self._abandoned = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        asyncio.run_coroutine_threadsafe(self._put(piece), self._loop).result()
        return len(piece)

    async def _put(self, piece: bytes) -> None:
        await self._room.acquire()
        if self._abandoned:
            raise BrokenPipeError("nobody takes the tar any more")
        self._pieces.put_nowait(piece)

    async def next(self) -> bytes:
        """The next piece; nothing at the end."""
        piece = await self._pieces.get()
        self._room.release()
        return piece

    def end(self) -> None:
        self._pieces.put_nowait(b"")

    def abandon(self) -> None:
        """Who writes is told, also who waits for room."""
        self._abandoned = True
        for _ in range(PIECES):
            self._room.release()
