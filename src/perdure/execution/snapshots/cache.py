"""Frames of layers that are beyond this machine, kept here as they are read, up to a limit.

A frame is fetched once, however many machines want it at the same moment; what is wanted together is read in few
ranges, several at a time. Each frame is decompressed before it counts, so what is in the cache was right when it came.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from pathlib import Path

import zstandard

from perdure.errors import NoSpace, SnapshotInvalid, Unavailable
from perdure.execution.registry.contract import RemoteStore
from perdure.execution.snapshots import cachefile
from perdure.execution.snapshots.cachefile import CacheFile, Read
from perdure.execution.snapshots.diskspace import space_checked
from perdure.execution.snapshots.layers import Layer
from perdure.execution.snapshots.stores import open_store
from perdure.formats import seekable
from perdure.formats.manifest import Descriptor, check_digest
from perdure.formats.seekable import Frame

LIMIT_BYTES = 4 << 30
GAP_BYTES = 64 << 10  # a smaller gap between two wanted frames is read with them
REQUEST_BYTES = 1 << 20
REQUESTS = 8  # at once
SAVE_BYTES = 64 << 20  # that arrived and are not recorded yet: what a crash costs at most
READS = 3  # of bytes that do not verify


class CachedLayer(Layer):
    """A layer of a ``FrameCache``. While it is open its file is not evicted."""

    def __init__(self, cache: FrameCache, file: CacheFile) -> None:
        self._cache = cache
        self._cached = file
        self._is_open = False  # a constructor that fails releases nothing: whoever called it does
        super().__init__(file.path)
        self._is_open = True

    def close(self) -> None:
        super().close()
        if self._is_open:
            self._is_open = False
            self._cache.release(self._cached)

    @property
    def partial(self) -> bool:
        return not self._cached.complete

    def present(self, number: int) -> bool:
        with self._cached.guard:
            return self._cached.has(number)

    def fetch(self, numbers: Iterable[int]) -> None:
        for flight in self.request(numbers):
            flight.result()

    def request(self, numbers: Iterable[int]) -> list[Future[None]]:
        """Begin to fetch; these end when all of the frames are in the file, verified by this process, or raise what
        ``fetch`` raises."""
        return self._cache.request(self._cached, numbers)

    def frame(self, number: int) -> bytes:
        if not self.present(number):
            self.fetch([number])
        try:
            return super().frame(number)
        except SnapshotInvalid:  # the disk lost it since
            self._cached.lost(number)
            self.fetch([number])
            return super().frame(number)


class FrameCache:
    """``FrameCache(folder)``: thread-safe, and several processes may use one folder. A context manager.

    ``limit_bytes`` is of all layers; over it whole layers go, the one that was not opened or filled for longest
    first, never one that is open. ``connect`` opens a store by its URL.
    """

    def __init__(
        self, folder: Path, *, limit_bytes: int = LIMIT_BYTES, connect: Callable[[str], RemoteStore] = open_store
    ) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._connect = connect
        self._guard = threading.Lock()
        self._files: dict[str, CacheFile] = {}
        self._stores: dict[str, RemoteStore] = {}
        self._pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="frames")
        with space_checked(str(folder)):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in folder.glob("*.new"):  # of a process that died
            path.unlink(missing_ok=True)
        self._closed = False
        self._look_at = 0  # bytes arrived, when the limit is looked at next
        self._arrived = 0
        self._is_over = False

    def __enter__(self) -> FrameCache:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Whoever still waits for a frame gets Unavailable. Layers that are open stay readable."""
        with self._guard:
            self._closed = True
            files, stores = list(self._files.values()), list(self._stores.values())
            self._stores.clear()
        self._pool.shutdown(wait=False)
        for file in files:
            with file.guard:
                flights = set(file.flying.values())
                file.flying.clear()
            for flight in flights:
                _end(flight, Unavailable(_CLOSED))
        for store in stores:
            store.close()

    def open(self, descriptor: Descriptor, url: str) -> CachedLayer:
        """The layer, its index verified; of its frames those that were fetched before are here.

        Raises Unavailable, NotFound, NoRights (what the store says), SnapshotInvalid, NoSpace.
        """
        name = check_digest(descriptor.digest)

        def read(offset: int, length: int) -> bytes:
            return self._store(url).read(descriptor, offset, length)

        try:
            file = self._used(name, descriptor.size, read)
        except NoSpace:  # for one more file
            self._make_room(0)
            file = self._used(name, descriptor.size, read)
        try:
            return self._opened(file, url)
        except BaseException:
            self.release(file)
            if name not in self._files:
                cachefile.remove(file.path)
            raise

    def _used(self, name: str, size: int, read: Read) -> CacheFile:
        """The file, with one more user."""
        with self._guard, space_checked(str(self.folder)):
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = CacheFile(self.folder / name, size, read)
            file.read = read  # the store that was named last
            file.users += 1
            return file

    def _opened(self, file: CacheFile, url: str) -> CachedLayer:
        for attempt in range(READS):
            with file.loading:
                try:
                    try:
                        file.load()
                    except NoSpace:
                        self._make_room(0)
                        file.load()
                    return CachedLayer(self, file)
                except SnapshotInvalid as error:
                    file.forget()
                    if attempt == READS - 1:
                        name = file.path.name
                        raise SnapshotInvalid(f"layer {name} in {url}: {error.message}", layer=name) from None
        raise AssertionError  # not reached

    def release(self, file: CacheFile) -> None:
        """A user of the file is done with it; the last one records what arrived."""
        with self._guard:
            file.users -= 1
            if file.users:
                return
            del self._files[file.path.name]
        try:
            if file.unsaved:
                file.save()
        except (NoSpace, OSError):
            pass  # what is not recorded is fetched again, nothing worse
        finally:
            file.close()  # until here its lock keeps it from being evicted
        self._keep_limit(0)

    def request(self, file: CacheFile, numbers: Iterable[int]) -> list[Future[None]]:
        """What ends when the frames are there; nothing for frames that are, as this process has seen itself."""
        with self._guard, file.guard:
            if self._closed:
                raise Unavailable(_CLOSED)
            wanted = {number for number in numbers if number not in file.sure}
            flights = {file.flying[number] for number in wanted if number in file.flying}
            idle = sorted(number for number in wanted if number not in file.flying)
            for first, last in ranges(file.frames, [number for number in idle if not file.has(number)]):
                group = [n for n in range(first, last + 1) if not file.has(n) and n not in file.flying]
                flights.add(self._take_off(file, group, self._bring))
            if recorded := [number for number in idle if file.has(number)]:
                flights.add(self._take_off(file, recorded, self._look_after))
        return list(flights)

    def _take_off(
        self, file: CacheFile, wanted: Sequence[int], bring: Callable[[CacheFile, Sequence[int]], None]
    ) -> Future[None]:
        flight: Future[None] = Future()
        flight.set_running_or_notify_cancel()  # whoever stops waiting does not stop it for the others
        file.flying.update(dict.fromkeys(wanted, flight))
        file.users += 1
        self._pool.submit(self._fly, file, wanted, bring, flight)
        return flight

    def _fly(
        self,
        file: CacheFile,
        wanted: Sequence[int],
        bring: Callable[[CacheFile, Sequence[int]], None],
        flight: Future[None],
    ) -> None:
        failure: BaseException | None = None
        try:
            bring(file, wanted)
        except BaseException as error:
            failure = error
        with file.guard:
            if failure is None:
                file.arrived(wanted)
            for number in wanted:
                file.flying.pop(number, None)
        _end(flight, failure)
        if failure is None and file.unsaved_bytes >= SAVE_BYTES:
            with contextlib.suppress(NoSpace, OSError):
                file.save()
        self.release(file)
        self._keep_limit(sum(file.frames[number].compressed for number in wanted))

    def _look_after(self, file: CacheFile, recorded: Sequence[int]) -> None:
        """Of frames that an earlier process has recorded fetch again what the disk has lost since."""
        lost = [number for number in recorded if not file.reads(number)]
        for number in lost:
            file.lost(number)
        for first, last in ranges(file.frames, lost):
            self._bring(file, [number for number in lost if first <= number <= last])

    def _bring(self, file: CacheFile, wanted: Sequence[int]) -> None:
        """Read what spans the frames that are wanted, write these."""
        first, last = wanted[0], wanted[-1]
        start = file.frames[first].offset
        length = file.frames[last].offset + file.frames[last].compressed - start
        decompressor = zstandard.ZstdDecompressor()
        for attempt in range(READS):
            data = file.read(start, length)
            try:
                for number in wanted:
                    _verify(decompressor, file.frames[number], number, _part(file.frames, data, start, number, number))
                break
            except SnapshotInvalid as error:
                if attempt == READS - 1:
                    name = file.path.name
                    raise SnapshotInvalid(
                        f"layer {name}, {error.message}", hint=_OTHER_BYTES, layer=name, **error.details
                    ) from None
        for begin, end in _neighbours(wanted):
            part = _part(file.frames, data, start, begin, end)
            try:
                file.write(begin, part)
            except NoSpace:
                self._make_room(0)
                file.write(begin, part)

    def _keep_limit(self, arrived_bytes: int) -> None:
        """After bytes have arrived, or (0) a file is not used any more."""
        with self._guard:
            self._arrived += arrived_bytes
            due = self._arrived >= self._look_at or (self._is_over and not arrived_bytes)
        if due:
            total = self._make_room(self.limit_bytes)
            with self._guard:  # while what is in use is over the limit, not at each frame
                self._is_over = total > self.limit_bytes
                self._look_at = self._arrived + max(self.limit_bytes - total, self.limit_bytes // 64)

    def _make_room(self, limit_bytes: int) -> int:
        """Evict until the rest fits, or is in use; the bytes that are left."""
        with self._guard:
            found = []
            for path in self.folder.iterdir():
                if len(path.name) == 64:
                    facts = path.stat()
                    found.append((facts.st_mtime_ns, facts.st_blocks * 512, path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total <= limit_bytes:
                    break
                if path.name not in self._files and cachefile.remove(path):
                    total -= size
            return total

    def _store(self, url: str) -> RemoteStore:
        with self._guard:
            if self._closed:
                raise Unavailable(_CLOSED)
            store = self._stores.get(url)
            if store is None:
                store = self._stores[url] = self._connect(url)
            return store


def ranges(frames: Sequence[Frame], numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of the frames that are read at once, so that few ranges give all of ``numbers`` (ascending)."""
    if not numbers:
        return
    first = last = numbers[0]
    for number in numbers[1:]:
        end = frames[number].offset + frames[number].compressed
        gap = frames[number].offset - frames[last].offset - frames[last].compressed
        if gap >= GAP_BYTES or end - frames[first].offset > REQUEST_BYTES:
            yield first, last
            first = number
        last = number
    yield first, last


def _neighbours(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    begin = end = numbers[0]
    for number in numbers[1:]:
        if number != end + 1:
            yield begin, end
            begin = number
        end = number
    yield begin, end


def _part(frames: Sequence[Frame], data: bytes, start: int, first: int, last: int) -> bytes:
    return data[frames[first].offset - start : frames[last].offset + frames[last].compressed - start]


def _verify(decompressor: zstandard.ZstdDecompressor, frame: Frame, number: int, data: bytes) -> None:
    try:
        seekable.decompress(decompressor, data, frame.size, frame.checksum)
    except SnapshotInvalid as error:
        raise SnapshotInvalid(f"frame {number}: {error.message}", frame=number) from None


def _end(flight: Future[None], failure: BaseException | None) -> None:
    """Unless it ended already: the cache was closed meanwhile."""
    try:
        flight.set_exception(failure) if failure is not None else flight.set_result(None)
    except InvalidStateError:
        pass  # as the docstring says


_CLOSED = "the cache of frames was closed"
_OTHER_BYTES = "The store gives other bytes than were put there. Restore from another store, or an older snapshot."
