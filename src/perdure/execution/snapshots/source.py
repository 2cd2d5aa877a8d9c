"""Where a pager's contents come from, and a thread that decompresses what will be wanted next. Light imports."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right

import zstandard

from perdure.errors import PerdureError, SnapshotInvalid
from perdure.formats import memorymap, seekable
from perdure.formats.memorymap import FRAME, MemoryMap
from perdure.linux.userfaultfd import PAGE, MappedFile

HELD_BYTES_MAX = 64 << 20  # of frames decompressed before anyone asked for them


class Source:
    """The map, the template at an address, frames from the layers' files.

    A thread decompresses the frames of the working set ahead of whoever asks for them, from before Firecracker has
    connected. Each frame is decompressed once; at most ``HELD_BYTES_MAX`` wait. A context manager.
    """

    def __init__(self, map_path: str, template: str | None) -> None:
        with open(map_path, "rb") as file:  # noqa: PTH123 - pathlib is not light
            self.map: MemoryMap = memorymap.decode(file.read())
        path = template or self.map.template
        self.template = MappedFile(path)
        if self.template.size != self.map.blocks * PAGE:
            raise SnapshotInvalid(f"template {path} has {self.template.size} bytes, not {self.map.blocks * PAGE}")
        self._files = [os.open(layer, os.O_RDONLY | os.O_CLOEXEC) for layer in self.map.layers]
        self._decompressor = zstandard.ZstdDecompressor()
        self._held: dict[int, bytes] = {}
        self._held_bytes = 0
        self._asked: set[int] = set()  # frames that need not be made ahead any more
        self._making = -1
        self._closed = False
        self._change = threading.Condition()
        self._ahead = threading.Thread(target=self._work_ahead, daemon=True)

    def __enter__(self) -> Source:
        if self.map.hot:
            self._ahead.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self.map.hot:
            self._ahead.join()
        for file in self._files:
            os.close(file)
        self.template.close()

    def frame(self, number: int) -> bytes:
        """The content of a frame, verified. Raises SnapshotInvalid that names layer and frame."""
        if self._ahead.is_alive() or self._held:
            with self._change:
                self._asked.add(number)
                while self._making == number:
                    self._change.wait()
                held = self._held.pop(number, None)
                if held is not None:
                    self._held_bytes -= len(held)
                    self._change.notify_all()
                    return held
        return self._read(number, self._decompressor)

    def _work_ahead(self) -> None:
        table = self.map
        decompressor = zstandard.ZstdDecompressor()
        for block in table.hot:
            number = table.source[bisect_right(table.first, block) - 1] - FRAME
            with self._change:
                while self._held_bytes >= HELD_BYTES_MAX and not self._closed:
                    self._change.wait()
                if self._closed:
                    return
                if number < 0 or number in self._asked:
                    continue
                self._asked.add(number)
                self._making = number
            try:
                content = self._read(number, decompressor)
            except (PerdureError, OSError):
                content = b""  # whoever asks for it finds the reason again
            with self._change:
                self._making = -1
                if content:
                    self._held[number] = content
                    self._held_bytes += len(content)
                self._change.notify_all()

    def _read(self, number: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
        table = self.map
        layer, size = table.frame_layer[number], table.frame_compressed[number]
        data = os.pread(self._files[layer], size, table.frame_offset[number])
        try:
            if len(data) != size:
                raise SnapshotInvalid("the file ends within it")
            length = table.frame_blocks[number] * PAGE
            return seekable.decompress(decompressor, data, length, table.frame_checksum[number])
        except SnapshotInvalid as error:
            path, place = table.layers[layer], table.frame_number[number]
            raise SnapshotInvalid(
                f"layer {path}, frame {place}: {error.message}",
                hint="The layer was damaged after the restore began. Restore an older snapshot.",
                layer=os.path.basename(path),  # noqa: PTH119 - pathlib is not light
                frame=place,
            ) from None
