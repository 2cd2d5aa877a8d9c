"""The keeper's side of the collector: the program (``collector/``) that makes one file of what a capture left in tmpfs.

Python took half a second for it in the emulated host, where some 1500 pieces were copied one by one through virtiofs
(docs/design/0009-collector.md). While the program works the keeper goes on relaying.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat

from perdure.errors import MachineFailed, NoSpace, PerdureError
from perdure.keeper.jail import remove
from perdure.keeper.loop import READ, Loop, Stream
from perdure.linux import process

CAPTURED = ("capture.state", "capture.memory")  # what Firecracker writes, in its folder

_TIMEOUT_S = 600.0
_COPY_BYTES = 1 << 20
_STATE_MAX = 64 << 20


class Ground:
    """The template that a machine's memory stands on: open as long as the machine lives, so that it stays what it was
    when its file is replaced. ``digest``: 64 hexadecimal digits, of its content."""

    def __init__(self, path: str, digest: str) -> None:
        """Raises OSError."""
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.digest = digest

    def close(self) -> None:
        os.close(self.fd)


class Collector:
    """One running collector. It may be started while Firecracker still writes, and makes one file."""

    def __init__(self, loop: Loop, program: str, ground: Ground | None) -> None:
        """Start it. Raises OSError."""
        self._loop = loop
        self._heard = bytearray()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                argv, keep = [program, str(theirs.fileno())], [theirs.fileno()]
                if ground is not None:
                    argv += [str(ground.fd), ground.digest]
                    keep.append(ground.fd)
                self._process = process.spawn(argv, cwd=".", env={}, output=2, keep=keep)
        except BaseException:
            ours.close()
            raise
        self._stream = Stream(loop, ours.detach(), self._heard.extend, lambda: None)

    def collect(self, folder: str, *, holes_are_zeros: bool, place: str = ".") -> int:
        """Make ``state`` and ``memory`` (a capture file) in a folder of the captured files, which stay; their bytes.

        ``place``: the folder that the captured files are in. It may be a hostile machine's, so nothing in it is trusted
        to be a file. Not synced: nothing counts on it until it is packed, and a host that goes down takes the machine
        along. Raises NoSpace, MachineFailed; then nothing is left in the folder that was not there before.
        """
        state, memory = f"{folder}/state", f"{folder}/memory"
        made: list[str] = []
        try:
            for path in (state, memory):
                # never onto a file that is there: it could be the memory of a running machine
                if os.path.lexists(path):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            made += [state, memory]
            words = ("full" if holes_are_zeros else "diff", f"{place}/{CAPTURED[1]}", memory)
            self._stream.write(b"".join(os.fsencode(word) + b"\0" for word in words))
            size = _copy(f"{place}/{CAPTURED[0]}", state)  # meanwhile
            return size + self._written()
        except BaseException as error:
            self._process.kill()
            self._process.wait()  # so that it does not make what is removed now
            remove(*made)
            if isinstance(error, OSError):
                raise _not_written(folder, error) from error
            raise

    @property
    def is_gone(self) -> bool:
        """Whether it was closed, and has let go of what it mapped."""
        return self._process.pidfd < 0

    def close(self) -> None:
        """Kill it, if it runs. It is reaped when it has ended: letting go of its mappings takes a while."""
        self._stream.close()
        self._process.kill()
        self._loop.watch(self._process.pidfd, READ, self._reap)

    def _reap(self, _mask: int) -> None:
        if self._process.poll() is not None:
            self._loop.forget(self._process.pidfd)
            self._process.close()

    def _written(self) -> int:
        """The bytes that it says it has written. Raises OSError as it did, MachineFailed."""
        if not self._loop.run_until(lambda: self._heard.endswith(b"\n") or self._stream.closed, _TIMEOUT_S):
            raise MachineFailed(f"the collector did not end within {_TIMEOUT_S:g} s")
        try:
            said = json.loads(self._heard)
            if "bytes" in said:
                return int(said["bytes"])
            raise OSError(int(said["errno"]), str(said["message"]))
        except (ValueError, KeyError, TypeError):
            status = self._process.wait()
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise MachineFailed(f"the collector {how}, it gave no reason") from None


def _copy(source: str, target: str) -> int:
    """A small file, made by who may be hostile, into a new one; its bytes. Raises OSError for what is no such file."""
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as reading, open(target, "xb", buffering=0) as writing:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", source)
        size = 0
        while data := reading.read(_COPY_BYTES):
            size += len(data)
            if size > _STATE_MAX:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), source)
            while data:
                data = data[writing.write(data) :]
    return size


def _not_written(folder: str, error: OSError) -> PerdureError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"no space left for a snapshot in {folder}", hint="Free disk space, then suspend again.")
    return MachineFailed(f"the snapshot could not be written to {folder}: {error}")
