"""The keeper's side of the collector: the program (``collector/``) that makes one file of what a capture left in tmpfs.

In Python it took half a second in the emulated host, for some 1500 pieces of 4 KiB and more that were copied one by one
through virtiofs. While it works the keeper goes on relaying.
"""

from __future__ import annotations

import errno
import json
import os

from perdure.errors import MachineFailed, NoSpace, PerdureError
from perdure.keeper.loop import READ, Loop
from perdure.linux import process

CAPTURED = ("capture.state", "capture.memory")  # what Firecracker writes, in the working directory

_TIMEOUT_S = 600.0
_LAST_WORDS_BYTES = 4096
_COPY_BYTES = 1 << 20


class Ground:
    """The template that a machine's memory stands on: open as long as the machine lives, so that it stays what it was
    when its file is replaced. ``digest``: 64 hexadecimal digits, of its content."""

    def __init__(self, path: str, digest: str) -> None:
        """Raises OSError."""
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.digest = digest

    def close(self) -> None:
        os.close(self.fd)


def collect(loop: Loop, program: str, folder: str, ground: Ground | None, *, holes_are_zeros: bool) -> int:
    """Make ``state`` and ``memory`` (a capture file) in a folder of the captured files, which stay; their bytes.

    Not synced: nothing counts on it until it is packed, and a host that goes down takes the machine along.
    Raises NoSpace, MachineFailed; then nothing is left in the folder that was not there before.
    """
    made: list[str] = []
    try:
        for name in ("state", "memory"):
            # never onto a file that is there: it could be the memory of a running machine
            if os.path.lexists(f"{folder}/{name}"):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        made += [f"{folder}/state", f"{folder}/memory"]
        argv = [program, "full" if holes_are_zeros else "diff", CAPTURED[1], made[1]]
        if ground is not None:
            argv += [str(ground.fd), ground.digest]
        running = _Running(loop, argv, () if ground is None else (ground.fd,))
        try:
            size = _copy(CAPTURED[0], made[0])  # meanwhile
            return size + running.wait()
        finally:
            running.close()
    except BaseException as error:
        remove(*made)
        if isinstance(error, OSError):
            raise _not_written(folder, error) from error
        raise


class _Running:
    def __init__(self, loop: Loop, argv: list[str], keep: tuple[int, ...]) -> None:
        self._loop = loop
        self._said, writing = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = process.spawn(argv, cwd=".", env={}, output=writing, keep=keep)
        except BaseException:
            os.close(self._said)
            raise
        finally:
            os.close(writing)
        self._ended = False
        loop.watch(self._process.pidfd, READ, self._end)

    def wait(self) -> int:
        """The bytes that it wrote. Raises OSError as it did, MachineFailed."""
        if not self._loop.run_until(lambda: self._ended, _TIMEOUT_S):
            raise MachineFailed(f"the collector did not end within {_TIMEOUT_S:g} s")
        status = self._process.wait()
        os.set_blocking(self._said, False)  # should something that it started still have it open
        try:
            words = os.read(self._said, _LAST_WORDS_BYTES)
        except BlockingIOError:
            words = b""
        try:
            said = json.loads(words)
            if status == 0:
                return int(said["bytes"])
            raise OSError(int(said["errno"]), str(said["message"]))
        except (ValueError, KeyError, TypeError):
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            last = words.decode(errors="replace").strip()
            raise MachineFailed(f"the collector {how}" + (f": {last}" if last else "")) from None

    def close(self) -> None:
        """Kill it, if it runs."""
        self._loop.forget(self._process.pidfd)
        self._process.kill()
        self._process.wait()
        self._process.close()
        os.close(self._said)

    def _end(self, _mask: int) -> None:
        if self._process.poll() is not None:
            self._ended = True
            self._loop.forget(self._process.pidfd)


def remove(*paths: str) -> None:
    """Those that are there."""
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def _copy(source: str, target: str) -> int:
    """A small file into a new one; its bytes."""
    with open(source, "rb", buffering=0) as reading, open(target, "xb", buffering=0) as writing:
        size = 0
        while data := reading.read(_COPY_BYTES):
            size += len(data)
            while data:
                data = data[writing.write(data) :]
    return size


def _not_written(folder: str, error: OSError) -> PerdureError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"no space left for a snapshot in {folder}", hint="Free disk space, then suspend again.")
    return MachineFailed(f"the snapshot could not be written to {folder}: {error}")
