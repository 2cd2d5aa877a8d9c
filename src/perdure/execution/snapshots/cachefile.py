"""One layer's file in the cache of frames, and the record of which frames are in it (docs/formats/cache.md).

    HEX            sparse, as long as the layer: every byte that was fetched is at its own offset
    HEX.present    which frames those are; written after their bytes are durable, so it never names too many

So a layer that was only begun opens like a whole one, as soon as its index (block map and seek table, at its end) is
there. Whoever has the file open holds its lock shared; whoever deletes it wants the lock alone.
"""

from __future__ import annotations

import fcntl
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path

import zstandard

from perdure.errors import SnapshotInvalid
from perdure.execution.snapshots.diskspace import space_checked
from perdure.formats import presence, seekable
from perdure.formats.presence import Presence
from perdure.formats.seekable import Frame

TAIL_BYTES = 64 << 10  # read from a layer's end first: most indexes are smaller
INDEX_BYTES_MAX = 64 << 20
Read = Callable[[int, int], bytes]  # (offset, length) of the layer -> bytes


class CacheFile:
    """Open, with its lock held. ``read`` gives the layer's bytes from the store that has them.

    ``guard`` is held to look at or change ``presence``, ``flying`` (frames that are on their way) and ``users``.
    """

    def __init__(self, path: Path, size: int, read: Read) -> None:
        self.path = path
        self.size = size
        self.read = read
        self.guard = threading.Lock()
        self.loading = threading.Lock()  # held while the index is fetched
        self.presence: Presence | None = None
        self.frames: Sequence[Frame] = ()
        self.flying: dict[int, Future[None]] = {}
        self.sure: set[int] = set()  # frames whose bytes were verified by this process
        self._lost: set[int] = set()  # frames that the record may still name, wrongly
        self.users = 0
        self.unsaved_bytes = 0
        self._saving = threading.Lock()
        self._file = _locked(path)

    def load(self) -> None:
        """Make the index be there, from an earlier time or from the store. Raises what ``read`` does, NoSpace,
        SnapshotInvalid (it is not the end of a layer)."""
        os.utime(self._file)  # it is used now: the one that was not used for longest is evicted first
        if self.presence is not None:
            return
        found = self._recorded()
        if found is None:
            self._record_path.unlink(missing_ok=True)
            start, index = fetch_index(self.read, self.size)
            with space_checked(f"the cached layer {self.path}"):
                os.ftruncate(self._file, self.size)
                write_at(self._file, start, index)
            checksum = zlib.crc32(index)
        else:
            start, checksum = found.begin, found.checksum
        frames = self._table(start)
        if found is not None and found.frames != len(frames):
            found = None
        self.frames = frames
        self.presence = found or presence.empty(len(frames), self.size, start, checksum)
        if found is None:
            self.save()

    def forget(self) -> None:
        """Of an index that turned out to be none: the next ``load`` fetches it again."""
        self.presence = None
        self._record_path.unlink(missing_ok=True)

    def has(self, number: int) -> bool:
        return self.presence is not None and self.presence.has(number)

    @property
    def complete(self) -> bool:
        with self.guard:
            return self.presence is not None and self.presence.complete

    def write(self, number: int, data: bytes) -> None:
        """The bytes of frames from ``number`` on, verified. They count once ``arrived`` is called."""
        with space_checked(f"the cached layer {self.path}"):
            write_at(self._file, self.frames[number].offset, data)

    def arrived(self, numbers: Iterable[int]) -> None:
        """The bytes of these frames are in the file. With ``guard`` held."""
        assert self.presence is not None
        for number in numbers:
            self.presence.put(number)
            self.sure.add(number)
            self._lost.discard(number)
            self.unsaved_bytes += self.frames[number].compressed

    def lost(self, number: int) -> None:
        """The bytes of this frame are not what they should be: it is not there."""
        with self.guard:
            if self.presence is not None:
                self.presence.drop(number)
                self.sure.discard(number)
                self._lost.add(number)

    def reads(self, number: int) -> bool:
        """Whether the bytes of this frame are what they should be: a disk may lose what it had."""
        frame = self.frames[number]
        data = os.pread(self._file, frame.compressed, frame.offset)
        try:
            seekable.decompress(zstandard.ZstdDecompressor(), data, frame.size, frame.checksum)
        except SnapshotInvalid:
            return False
        return True

    def save(self) -> None:
        """Make what arrived durable, then the record of it."""
        with self._saving:
            with self.guard:
                if self.presence is None:
                    return
                held = self.presence._replace(bits=bytearray(self.presence.bits))
                lost = set(self._lost)
                self.unsaved_bytes = 0
            os.fdatasync(self._file)
            other = self._read_record()  # another process may use this file too
            if other is not None and (other.size, other.checksum) == (held.size, held.checksum):
                for place, byte in enumerate(other.bits):
                    held.bits[place] |= byte
                for number in lost:
                    held.drop(number)
            temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
            try:
                with space_checked(str(self._record_path)):
                    temporary.write_bytes(presence.encode(held))
                    temporary.rename(self._record_path)
            finally:
                temporary.unlink(missing_ok=True)
            with self.guard:
                self._lost -= lost

    @property
    def unsaved(self) -> bool:
        """The record says less, or more, than is there."""
        return bool(self.unsaved_bytes or self._lost)

    def close(self) -> None:
        os.close(self._file)

    @property
    def _record_path(self) -> Path:
        return self.path.with_name(self.path.name + ".present")

    def _recorded(self) -> Presence | None:
        """What was recorded earlier, if it fits what is in the file."""
        found = self._read_record()
        if found is None or found.size != self.size or os.fstat(self._file).st_size != self.size:
            return None
        length = self.size - found.begin
        if length > INDEX_BYTES_MAX or zlib.crc32(os.pread(self._file, length, found.begin)) != found.checksum:
            return None
        return found

    def _read_record(self) -> Presence | None:
        try:
            return presence.decode(self._record_path.read_bytes())
        except (FileNotFoundError, SnapshotInvalid):
            return None  # it only saves time

    def _table(self, start: int) -> list[Frame]:
        index = os.pread(self._file, self.size - start, start)
        length = seekable.table_length(index[-seekable.FOOTER.size :])
        return seekable.decode_table(index[len(index) - length :], self.size)[:-1]  # the last is the block map


def fetch_index(read: Read, size: int) -> tuple[int, bytes]:
    """(where it begins, bytes) of a layer's block map and seek table. Raises SnapshotInvalid."""
    start = max(0, size - TAIL_BYTES)
    held = read(start, size - start)
    while True:  # at most three reads: the end, the rest of a long table, the rest of a long map
        length = seekable.table_length(held[-seekable.FOOTER.size :])
        if length > size:
            raise SnapshotInvalid("its seek table is longer than the file: truncated")
        begins = size - length
        if length <= len(held):
            frames = seekable.decode_table(held[len(held) - length :], size)
            begins = frames[-1].offset if frames else begins
        if size - begins > INDEX_BYTES_MAX:
            raise SnapshotInvalid(f"its index has {size - begins} bytes: too many")
        if begins >= start:
            return begins, held[begins - start :]
        held = read(begins, start - begins) + held
        start = begins


def remove(path: Path) -> bool:
    """Delete a layer's cache file. False: somebody uses it."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.with_name(path.name + ".present").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def write_at(file: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _locked(path: Path) -> int:
    """The file, made if need be, with its lock held shared."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        except FileNotFoundError:
            pass  # it was evicted before we had the lock
        except BaseException:
            os.close(file)
            raise
        os.close(file)
