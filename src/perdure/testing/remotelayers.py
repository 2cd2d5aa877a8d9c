"""Layers of which nothing is here yet, and a node that fetches what a pager wants of them."""

from __future__ import annotations

from pathlib import Path

from perdure.formats.memorymap import FRAME, MemoryMap, column

Wanted = list[tuple[int, int]]


class RemoteLayers:
    """Layers of which nothing is here yet: sparse files, into which ``fetch`` copies frames from the real ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._table: MemoryMap | None = None
        self.here: set[tuple[int, int]] = set()

    def empty(self, table: MemoryMap) -> MemoryMap:
        """The map of a machine to whose node all layers are remote."""
        self._table = table
        caches = []
        for number, layer in enumerate(table.layers):
            cache = self._folder / f"cache-{number}"
            with cache.open("wb") as file:
                file.truncate(Path(layer).stat().st_size)
            caches.append(str(cache))
        none = column([0]) * len(table.frame_layer)
        return table._replace(layers=caches, partial=[True for _ in caches], frame_present=none)

    @property
    def table(self) -> MemoryMap:
        assert self._table is not None
        return self._table

    def frame(self, block: int) -> tuple[int, int]:
        """(layer, number) of the frame that holds a block."""
        run = max(run for run, first in enumerate(self.table.first) if first <= block)
        frame = self.table.source[run] - FRAME
        return self.table.frame_layer[frame], self.table.frame_number[frame]

    def blocks_of_frames(self) -> list[int]:
        """The first block of every frame."""
        return [self.table.first[self.table.by_frame[start]] for start in self.table.frame_runs[:-1]]

    def fetch(self, wanted: Wanted) -> Wanted:
        """What a node does; each frame once, or it fails."""
        places = {
            (layer, number): at
            for at, (layer, number) in enumerate(zip(self.table.frame_layer, self.table.frame_number, strict=True))
        }
        for layer, number in wanted:
            assert (layer, number) not in self.here
            at = places[layer, number]
            offset, size = self.table.frame_offset[at], self.table.frame_compressed[at]
            with Path(self.table.layers[layer]).open("rb") as file:
                file.seek(offset)
                data = file.read(size)
            with (self._folder / f"cache-{layer}").open("r+b") as file:
                file.seek(offset)
                file.write(data)
            self.here.add((layer, number))
        return wanted
