"""The guest's serial console and Firecracker's own words, kept bounded: the folder is in memory."""

from __future__ import annotations

import os

from perdure.keeper.loop import Loop, Stream

PATH = "console.log"
KEEP_BYTES = 128 << 10  # per file; the one before is kept as console.log.1
_LAST_BYTES = 600


class Console:
    """Writes what comes out of a pipe to ``console.log`` in the working directory, never more than two files' worth."""

    def __init__(self, loop: Loop, fd: int) -> None:
        self._last = b""
        self._size = 0
        self._file = self._open()
        self._pipe = Stream(loop, fd, self._write, self._end)

    def last_words(self) -> str:
        """The end of what was said, to explain a death; reads what still is in the pipe."""
        while not self._pipe.closed:
            try:
                data = os.read(self._pipe.fd, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            self._write(data)
        lines = self._last.decode("utf-8", "replace").split("\n")
        return " | ".join(text for text in (each.strip() for each in lines[-6:]) if text)

    def close(self) -> None:
        self._pipe.close()
        self._end()

    def _open(self) -> int:
        return os.open(PATH, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _write(self, data: bytes) -> None:
        self._last = (self._last + data)[-_LAST_BYTES:]
        try:
            if self._size > KEEP_BYTES:
                os.replace(PATH, f"{PATH}.1")
                os.close(self._file)
                self._file, self._size = self._open(), 0
            os.write(self._file, data)
            self._size += len(data)
        except OSError:
            pass  # a full tmpfs: the last words are kept all the same, and the guest must not wait for its console

    def _end(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
