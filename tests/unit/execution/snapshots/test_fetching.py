"""A pager's view of layers that are beyond this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.errors import InvalidValue, Unavailable
from perdure.execution.snapshots import transfer
from perdure.execution.snapshots.fetching import Fetcher
from perdure.execution.snapshots.layers import Layer
from perdure.execution.snapshots.stores.folder import FolderStore
from perdure.formats.blockmap import BLOCK
from perdure.testing.snapshots import BLOCKS
from perdure.testing.stores import DEADLINE_S, Node, block


@pytest.fixture
def attached(tmp_path: Path) -> Iterator[tuple[Node, Fetcher, bytes]]:
    with Node(tmp_path / "here") as here, Node(tmp_path / "there") as there:
        remote = FolderStore(tmp_path / "remote")
        template = here.template(bytes(BLOCKS * BLOCK))
        content = b"".join(block(seed + 1) for seed in range(BLOCKS))
        changed = {place: block(place + 1) for place in range(BLOCKS)}
        snapshot = here.capture(template, changed, block(1) * 4, image=here.image())
        transfer.push(here.store, here.templates, here.images, snapshot, remote)
        reference = transfer.tag_of(snapshot.digest)
        transfer.attach(there.store, there.templates, there.images, remote, reference)
        with Fetcher(there.store, snapshot) as fetcher:
            yield there, fetcher, content


async def test_a_pager_gets_the_frames_that_it_wants(attached: tuple[Node, Fetcher, bytes]) -> None:
    node, fetcher, content = attached
    assert fetcher.partial
    await asyncio.wait_for(asyncio.gather(*(fetcher.want([(0, n), (0, 15 - n)]) for n in range(8))), DEADLINE_S)
    assert not fetcher.partial
    (path,) = [path for path in (node.root / "cache").iterdir() if len(path.name) == 64]
    with Layer(path) as layer:  # what the pager opens
        assert b"".join(map(layer.frame, range(16))) == content


async def test_whoever_stops_waiting_stops_nobody_else(attached: tuple[Node, Fetcher, bytes]) -> None:
    _, fetcher, _ = attached
    impatient = asyncio.create_task(fetcher.want([(0, 3)]))
    patient = asyncio.create_task(fetcher.want([(0, 3)]))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait_for(patient, DEADLINE_S)
    with pytest.raises(asyncio.CancelledError):
        await impatient


async def test_what_a_pager_cannot_want(attached: tuple[Node, Fetcher, bytes]) -> None:
    node, fetcher, _ = attached
    for frame in ((1, 0), (-1, 0), (0, 16), (0, -1)):
        with pytest.raises(InvalidValue, match="has no frame"):
            await fetcher.want([frame])
    node.counted.clear()
    node.cache.close()
    with pytest.raises(Unavailable):
        await fetcher.want([(0, 0)])
