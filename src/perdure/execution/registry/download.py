"""Blobs on their way from a store: several at once, each in ranges, verified as a whole before it counts."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Self

from perdure.errors import ImageInvalid, PerdureError
from perdure.execution.registry.contract import BlobSource
from perdure.formats.manifest import Descriptor
from perdure.host.progress import Progress

BLOBS = 3  # at once
RANGES = 8  # at once, of all blobs
RANGE_BYTES = 4 << 20
AHEAD = 4  # ranges of one blob that are read before they are wanted: bounds the memory
READS = 2  # of a blob that does not have its digest
SMALL_BYTES_MAX = 64 << 20  # of a blob that is held in memory


class Download:
    """From one store. A context manager; leaving it early stops what is under way.

    ``invalid`` is what it raises where bytes are not those that were asked for. Errors of the disk are OSErrors.
    """

    invalid: type[PerdureError] = ImageInvalid

    def __init__(self, source: BlobSource, progress: Progress, what: str = "Pulling") -> None:
        self.source = source
        self._progress = progress
        self._what = what
        self._guard = threading.Lock()
        self._stopped = False
        self._done = self._total = 0
        self._blobs = ThreadPoolExecutor(BLOBS, thread_name_prefix="pull")
        self._ranges = ThreadPoolExecutor(RANGES, thread_name_prefix="pull-range")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped = True
        self._blobs.shutdown(wait=True, cancel_futures=True)
        self._ranges.shutdown(wait=True, cancel_futures=True)

    def expect(self, descriptors: Iterable[Descriptor]) -> None:
        """These will be asked for: the total that progress tells."""
        with self._guard:
            self._total += sum(descriptor.size for descriptor in descriptors)
            self._progress(self._what, self._done, self._total)

    def small(self, descriptor: Descriptor) -> bytes:
        """A small blob, verified. Raises ``invalid``, and what the store raises."""
        if descriptor.size > SMALL_BYTES_MAX:
            raise self.invalid(f"blob {descriptor.digest} ({descriptor.media_type}) is larger than any of its kind")
        held = bytearray()

        def fresh() -> Callable[[bytes], object]:
            held.clear()
            return held.extend

        self._verified(descriptor, fresh)
        return bytes(held)

    def into_files(self, files: Iterable[tuple[Descriptor, Path]]) -> None:
        """Each blob to its path. What did not arrive whole is removed. Raises ``invalid``, OSError, and what the store
        raises."""
        self.all(partial(self._into_file, descriptor, path) for descriptor, path in files)

    def all(self, calls: Iterable[Callable[[], None]]) -> None:
        """Several blobs, one beside the other; what is raised is the first error."""
        work = [self._blobs.submit(call) for call in calls]
        finished, _ = wait(work, return_when=FIRST_EXCEPTION)
        if any(each.exception() for each in finished):
            self._stopped = True
        failed = [error for each in work if (error := each.exception()) is not None]
        told = [error for error in failed if not isinstance(error, _Stopped)]
        if told or failed:
            raise (told or failed)[0]

    def _into_file(self, descriptor: Descriptor, path: Path) -> None:
        try:
            with path.open("xb") as file:

                def fresh() -> Callable[[bytes], object]:
                    file.seek(0)
                    file.truncate()
                    return file.write

                self._verified(descriptor, fresh)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _verified(self, descriptor: Descriptor, fresh: Callable[[], Callable[[bytes], object]]) -> None:
        digest = ""
        for _ in range(READS):
            found, write = hashlib.sha256(), fresh()

            def take(data: bytes, found: hashlib._Hash = found, write: Callable[[bytes], object] = write) -> None:
                found.update(data)
                write(data)

            self.read(descriptor, take)
            digest = "sha256:" + found.hexdigest()
            if digest == descriptor.digest:
                return
        raise self.other_bytes(descriptor, digest)

    def read(self, descriptor: Descriptor, take: Callable[[bytes], object], start: int = 0) -> None:
        """The blob's bytes in order, from byte ``start`` on; what comes later is read meanwhile."""
        ahead: deque[Future[bytes]] = deque()
        offsets = iter(range(start, descriptor.size, RANGE_BYTES))
        counted = 0
        try:
            while True:
                while len(ahead) < AHEAD and (offset := next(offsets, None)) is not None:
                    length = min(RANGE_BYTES, descriptor.size - offset)
                    ahead.append(self._ranges.submit(self.source.read, descriptor, offset, length))
                if not ahead:
                    break
                data = ahead.popleft().result()
                if self._stopped:
                    raise _Stopped
                take(data)
                counted += len(data)
                self.count(len(data))
        except BaseException:
            for each in ahead:
                each.cancel()
            self.count(-counted)
            raise

    def count(self, size: int) -> None:
        """So many more bytes are here (negative: so many are not, after all)."""
        with self._guard:
            self._done += size
            self._progress(self._what, self._done, max(self._total, self._done))

    def other_bytes(self, descriptor: Descriptor, digest: str) -> PerdureError:
        """What to raise for a blob whose bytes have another digest."""
        return self.invalid(
            f"{self.source.url}: blob {descriptor.digest} ({descriptor.media_type}) has the digest {digest}: "
            "it was damaged or changed",
            hint="Push it there again, or take it from another store.",
        )


class _Stopped(Exception):
    """Another blob failed, and that is what is told."""
