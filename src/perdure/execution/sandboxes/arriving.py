"""A file that is read while it is still being written: an upload that is unpacked as it comes."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from perdure.execution.snapshots.diskspace import space_checked


class Arriving(io.RawIOBase):
    """Bytes go in at the end (``fill``, of an event loop) and come out anywhere (of another thread, which waits for
    what has not come yet). All that came stays in the file at ``path``."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("x+b", buffering=0)
        self._at = self._written = 0
        self._over = False
        self._failure: BaseException | None = None
        self._more = threading.Condition()

    async def fill(self, pieces: AsyncIterator[bytes]) -> None:
        """To the end of ``pieces``; where they fail, who reads raises that too. Raises NoSpace."""
        try:
            async for data in pieces:
                with space_checked("the archive"):
                    _write(self._file.fileno(), data, self._written)
                with self._more:
                    self._written += len(data)
                    self._more.notify()
        except BaseException as error:
            self.end(error)
            raise
        self.end()

    def end(self, failure: BaseException | None = None) -> None:
        """Nothing more comes: who waits goes on."""
        with self._more:
            self._over, self._failure = True, self._failure or failure
            self._more.notify()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence not in (os.SEEK_SET, os.SEEK_CUR):
            raise io.UnsupportedOperation("its end is not known")
        self._at = offset if whence == os.SEEK_SET else self._at + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        end = self._at + len(view)  # all of it, as tarfile takes less for the end
        with self._more:
            while self._written < end and not self._over:
                self._more.wait()
            if self._failure is not None and self._written < end:
                raise self._failure
        count = os.preadv(self._file.fileno(), [view], self._at)
        self._at += count
        return count

    def close(self) -> None:
        self.end()
        if not self._file.closed:
            self._file.close()
        super().close()


def _write(file: int, data: bytes, place: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written
