"""What a node runs when a pager asks for frames that are beyond this machine (asyncio, above the dotted line)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from perdure.errors import InvalidValue
from perdure.execution.snapshots.cache import CachedLayer, ranges
from perdure.execution.snapshots.layers import Layer, close_all, open_away
from perdure.execution.snapshots.store import Store
from perdure.formats.manifest import Snapshot


class Fetcher:
    """The memory layers of one snapshot that are beyond this machine, for one machine. A context manager.

    Open it before ``restore.prepare`` and keep it open for as long as the machine may ask, and again when a node finds
    a living machine: while it is open none of the layers' cache files is evicted. Opening blocks: use a thread.
    """

    def __init__(self, store: Store, snapshot: Snapshot, partial: Sequence[bool] | None = None) -> None:
        """``partial``: which layers a pager reads from the cache, as its memory map says (None: those that are not in
        the store now). Raises NotFound, and what ``layers.open_away`` raises."""
        descriptors = snapshot.memory.layers
        if partial is None:
            partial = [not store.blob_path(one.digest).exists() for one in descriptors]
        self._layers: dict[int, Layer] = {}
        try:
            for index, descriptor in enumerate(descriptors):
                if index < len(partial) and partial[index]:
                    self._layers[index] = open_away(store, descriptor)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        close_all(self._layers.values())

    @property
    def partial(self) -> bool:
        """Whether a pager may have to ask."""
        return any(layer.partial for layer in self._layers.values())

    def size_of(self, frames: Iterable[tuple[int, int]]) -> int:
        """Bytes of these frames in their layers."""
        return sum(self._layers[index].frames[number].compressed for index, number in frames)

    def together(self, frames: Iterable[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """The same frames in groups, each of which one read brings: so the first that come need not wait for the rest.

        Groups are in the order of the frames that were named first. Raises InvalidValue (no such frame).
        """
        groups = []
        order = {frame: place for place, frame in reversed(list(enumerate(frames)))}
        for index, numbers in self._by_layer(order).items():
            for first, last in ranges(self._layers[index].frames, sorted(numbers)):
                groups.append([(index, number) for number in sorted(numbers) if first <= number <= last])
        return sorted(groups, key=lambda group: min(order[frame] for frame in group))

    async def want(self, frames: Iterable[tuple[int, int]]) -> None:
        """Returns when these frames, (layer's index, frame's number) each, are in their layers' files.

        Raises Unavailable, NotFound, NoRights (the store, after retries), SnapshotInvalid (it gives other bytes),
        NoSpace, InvalidValue (no such frame). Whoever stops waiting stops nobody else's fetch.
        """
        flights = []
        for index, numbers in self._by_layer(frames).items():
            layer = self._layers[index]
            if isinstance(layer, CachedLayer):
                flights += [asyncio.wrap_future(flight) for flight in layer.request(numbers)]
        await asyncio.gather(*flights)

    def _by_layer(self, frames: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for index, number in frames:
            if index not in self._layers or not 0 <= number < len(self._layers[index].frames):
                raise InvalidValue(f"the snapshot has no frame {number} in a memory layer {index} elsewhere")
            found.setdefault(index, []).append(number)
        return found
