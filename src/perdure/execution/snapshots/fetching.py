"""What a node runs when a pager asks for frames that are beyond this machine (asyncio, above the dotted line)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from perdure.errors import InvalidValue
from perdure.execution.snapshots.cache import CachedLayer
from perdure.execution.snapshots.layers import Layer, close_all, open_layer
from perdure.execution.snapshots.store import Store
from perdure.formats.manifest import Snapshot


class Fetcher:
    """The memory layers of one snapshot, for one machine. A context manager.

    Open it before ``restore.prepare`` and keep it open for as long as the machine may ask, and again when a node finds
    a living machine: while it is open none of the layers' cache files is evicted. Opening blocks: use a thread.
    """

    def __init__(self, store: Store, snapshot: Snapshot) -> None:
        """Raises what ``layers.open_layer`` raises."""
        self._layers: list[Layer] = []
        try:
            for descriptor in snapshot.memory.layers:
                self._layers.append(open_layer(store, descriptor))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        close_all(self._layers)

    @property
    def partial(self) -> bool:
        """Whether a pager may have to ask."""
        return any(layer.partial for layer in self._layers)

    async def want(self, frames: Iterable[tuple[int, int]]) -> None:
        """Returns when these frames, (layer's index, frame's number) each, are in their layers' files.

        Raises Unavailable, NotFound, NoRights (the store, after retries), SnapshotInvalid (it gives other bytes),
        NoSpace, InvalidValue (no such frame). Whoever stops waiting stops nobody else's fetch.
        """
        wanted: dict[int, list[int]] = {}
        for index, number in frames:
            if not 0 <= index < len(self._layers) or not 0 <= number < len(self._layers[index].frames):
                raise InvalidValue(f"the snapshot has no frame {number} in a memory layer {index}")
            wanted.setdefault(index, []).append(number)
        flights = []
        for index, numbers in wanted.items():
            layer = self._layers[index]
            if isinstance(layer, CachedLayer):
                flights += [asyncio.wrap_future(flight) for flight in layer.request(numbers)]
        await asyncio.gather(*flights)
