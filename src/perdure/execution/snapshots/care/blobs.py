"""The blobs of a store, each read once and in full; of a layer every frame is decompressed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import PerdureError, SnapshotInvalid
from perdure.execution.snapshots.layers import Layer
from perdure.execution.snapshots.store import Store
from perdure.formats.blockmap import BlockMap
from perdure.formats.manifest import DISK_LAYER, MEMORY_LAYER, Descriptor
from perdure.host.progress import Progress
from perdure.reports import Finding

LOST = "Its blocks cannot be had back from here. Restore an older snapshot, or bring the blob back from a copy."
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Read:
    """What came of it. ``map``: of a layer that is here and opens."""

    sound: bool
    map: BlockMap | None = None


def finding(what: str, error: PerdureError | OSError, hint: str = "", *, layer: str = "") -> Finding:
    """What an error says, as a finding; ``hint`` where it has none."""
    said, own = (error.message, error.hint) if isinstance(error, PerdureError) else (str(error), "")
    return Finding(object=what, problem=said, layer=layer, hint=own or hint)


class Blobs:
    """``read`` adds to ``findings``. ``remote``: layers that a note in the store says are kept elsewhere, and where."""

    def __init__(self, store: Store, findings: list[Finding], progress: Progress) -> None:
        self._store = store
        self._findings = findings
        self._progress = progress
        self.seen: dict[str, Read] = {}
        self.remote: dict[str, str] = {}
        self.total_bytes = 0  # that will be read, for the progress
        self.read_bytes = self.frames = self.content_bytes = 0
        self._done_bytes = 0

    def read(self, blob: Descriptor) -> Read:
        """Its size, its digest, and of a layer its index and all frames."""
        if blob.digest not in self.seen:
            layer = blob.media_type in (MEMORY_LAYER, DISK_LAYER)
            self.seen[blob.digest] = self._layer(blob) if layer else self._plain(blob)
        return self.seen[blob.digest]

    def _plain(self, blob: Descriptor) -> Read:
        problem = self._problem(blob, 1)
        if problem:
            self._findings.append(Finding(object=f"blob {blob.digest}", problem=problem, hint=LOST))
        return Read(sound=not problem)

    def _layer(self, blob: Descriptor) -> Read:
        path = self._store.blob_path(blob.digest)
        what = f"layer {blob.digest}"
        found: list[Finding] = []
        if not path.exists():
            try:
                if url := self._store.place(blob):
                    self.remote[blob.digest] = url
                    return Read(sound=True)
            except (PerdureError, OSError) as error:  # a restore would not know where to fetch it
                self._findings.append(finding(what, error, LOST, layer=path.name))
                return Read(sound=False)
        if problem := self._problem(blob, 2):
            found.append(Finding(object=what, problem=problem, layer=path.name, hint=LOST))
        held = None
        if path.exists():  # also where it is damaged: in which frames is worth knowing
            try:
                held = self._frames(path, what, found)
            except (PerdureError, OSError) as error:
                found.append(finding(what, error, LOST, layer=path.name))
        self._findings += found
        return Read(sound=not found, map=held)

    def _problem(self, blob: Descriptor, passes: int) -> str:
        """What is wrong with the file's bytes; nothing: it has its digest."""
        path = self._store.blob_path(blob.digest)
        found = hashlib.sha256()
        try:
            size = path.stat().st_size
            if size != blob.size:
                state = "truncated" if size < blob.size else "longer than it was"
                return f"{path} ({blob.media_type}) is {state}: {size} bytes, not {blob.size}"
            with path.open("rb", buffering=0) as file:
                while piece := file.read(_CHUNK):
                    found.update(piece)
                    self.read_bytes += len(piece)
                    self._advance(len(piece) // passes)
        except FileNotFoundError:
            return f"{path} ({blob.media_type}) is missing"
        except OSError as error:
            return str(error)
        if "sha256:" + found.hexdigest() != blob.digest:
            return f"{path} ({blob.media_type}) does not have its digest: it was damaged or changed"
        return ""

    def _frames(self, path: Path, what: str, found: list[Finding]) -> BlockMap:
        with Layer(path) as layer:
            held, frames = layer.map, layer.frames
        workers = max(1, min(os.cpu_count() or 1, len(frames)))
        share = max(1, -(-len(frames) // workers))
        parts = [range(first, min(first + share, len(frames))) for first in range(0, len(frames), share)]
        with ThreadPoolExecutor(workers) as pool:
            for problems in pool.map(lambda part: list(_damaged(path, part)), parts):
                found += (
                    Finding(object=what, problem=problem, layer=path.name, frame=number, hint=LOST)
                    for number, problem in problems
                )
        self.frames += len(frames)
        self.content_bytes += sum(frame.size for frame in frames)
        self._advance(sum(frame.compressed for frame in frames) // 2)
        return held

    def _advance(self, count: int) -> None:
        self._done_bytes += count
        self._progress("Verifying", min(self._done_bytes, max(0, self.total_bytes - 1)), self.total_bytes)


def _damaged(path: Path, numbers: range) -> Iterator[tuple[int, str]]:
    with Layer(path) as layer:  # its own: a decompressor is for one thread
        for number in numbers:
            try:
                layer.frame(number)
            except SnapshotInvalid as error:
                yield number, error.message
