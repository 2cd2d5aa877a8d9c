"""What a pager wants comes, or it is told why not; and what it reads stays until its machine has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import Conflict, MachineFailed, SnapshotInvalid, Unavailable
from perdure.execution.registry.contract import RemoteStore
from perdure.execution.sandboxes import feeding
from perdure.execution.sandboxes.feeding import Feeder
from perdure.execution.snapshots import restore, transfer
from perdure.execution.snapshots.layers import Layer
from perdure.execution.snapshots.stores.folder import FolderStore
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Snapshot
from perdure.testing.snapshots import BLOCKS, facts
from perdure.testing.stores import DEADLINE_S, Held, Node, block


class Away:
    """A node whose only snapshot is in a store that can be closed, or fail."""

    def __init__(self, root: Path) -> None:
        self.remote = Held(FolderStore(root / "remote"))
        self.node = _Node(root / "there", self.remote)
        with Node(root / "here") as here:
            self.content = b"".join(block(seed + 1) for seed in range(BLOCKS))
            changed = {place: block(place + 1) for place in range(BLOCKS)}
            snapshot = here.capture(
                here.template(bytes(BLOCKS * BLOCK)), changed, block(1) * 4, image=here.image(), working_set=(17, 0, 40)
            )
            transfer.push(here.store, here.templates, here.images, snapshot, self.remote)
        self.snapshot = self.bring(lazy=True)

    def bring(self, *, lazy: bool) -> Snapshot:
        node, bring = self.node, transfer.attach if lazy else transfer.pull
        return bring(node.store, node.templates, node.images, self.remote, self.tag)

    @property
    def tag(self) -> str:
        (tag,) = [tag for tag in self.remote.tags() if tag.startswith("snapshot-")]
        return tag

    def prepared(self) -> restore.RestoreFiles:
        node = self.node
        return restore.prepare(node.store, self.snapshot, folder=node.root, templates=node.templates, facts=facts())

    def cached(self) -> bytes:
        """What is in the cache, as a pager reads it."""
        (path,) = [path for path in (self.node.root / "cache").iterdir() if len(path.name) == 64]
        with Layer(path) as layer:
            return b"".join(map(layer.frame, range(16)))


class _Node(Node):
    def __init__(self, root: Path, remote: Held) -> None:
        self._remote = remote
        super().__init__(root)

    def connect(self, url: str) -> RemoteStore:
        return self.counted.setdefault(url, self._remote)


class Keeper:
    """What a keeper is told."""

    sandbox_id = "0123456789ab"

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()

    async def request(self, op: str, **params: Any) -> dict[str, Any]:
        self.told.put_nowait((op, params))
        return {}

    async def next(self) -> tuple[str, dict[str, Any]]:
        return await asyncio.wait_for(self.told.get(), DEADLINE_S)


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Away]:
    away = Away(tmp_path)
    with away.node:
        yield away


async def test_each_group_is_told_as_soon_as_it_is_there(away: Away) -> None:
    feeder, keeper = Feeder(away.node.store, away.snapshot), Keeper()
    feeder.join(keeper.request)
    away.remote.ranges.clear()
    feeder.want([(0, number) for number in range(16)])
    had: list[tuple[int, int]] = []
    while len(had) < 16:
        op, params = await keeper.next()
        assert op == "pager-have"
        had += params["frames"]
    assert sorted(had) == [(0, number) for number in range(16)]
    assert away.cached() == away.content
    assert feeder.figures["frames"] == 16
    assert feeder.figures["bytes"] <= away.remote.bytes_read
    await feeder.close()
    assert keeper.told.empty()


async def test_the_working_set_is_fetched_before_anyone_asks(away: Away) -> None:
    prepared = await asyncio.to_thread(away.prepared)
    assert prepared.absent == [(0, 1), (0, 0), (0, 2)]
    feeder, keeper = Feeder(away.node.store, away.snapshot), Keeper()
    feeder.ahead(prepared.absent)  # before there is a keeper
    feeder.join(keeper.request)
    feeder.want([(0, 1)])
    assert await keeper.next() == ("pager-have", {"frames": [(0, 1)]})
    read = list(away.remote.ranges)
    feeder.want([(0, 0), (0, 2)])
    assert (await keeper.next())[0] == "pager-have"
    assert away.remote.ranges == read  # one read had brought them all
    await feeder.close()


async def test_a_store_that_comes_back_in_time_was_never_lost(away: Away) -> None:
    feeder, keeper = Feeder(away.node.store, away.snapshot), Keeper()
    feeder.join(keeper.request)
    away.remote.failures = [Unavailable("it is down")]
    feeder.want([(0, 3)])
    assert await keeper.next() == ("pager-have", {"frames": [(0, 3)]})
    assert away.remote.failures == []
    await feeder.close()


@pytest.mark.parametrize("failure", [Unavailable("it is down"), SnapshotInvalid("other bytes")])
async def test_what_cannot_be_had_is_told_once(away: Away, failure: Exception) -> None:
    feeder, keeper = Feeder(away.node.store, away.snapshot, lost_after_s=0), Keeper()
    feeder.join(keeper.request)
    away.remote.failures = [failure] * 10
    feeder.want([(0, 3)])
    op, params = await keeper.next()
    assert (op, params["message"]) == ("pager-lost", str(failure))
    feeder.want([(0, 3)])
    feeder.want([(7, 3)])
    await asyncio.wait_for(asyncio.gather(*feeder._tasks), DEADLINE_S)
    assert keeper.told.empty()
    await feeder.close()


async def test_a_store_that_is_too_slow_is_named_before_the_pager_gives_up(away: Away) -> None:
    feeder, keeper = Feeder(away.node.store, away.snapshot, slow_after_s=0.05), Keeper()
    feeder.join(keeper.request)
    away.remote.gate.clear()
    feeder.want([(0, 3)])
    op, params = await keeper.next()
    assert (op, "the store is too slow" in params["message"]) == ("pager-lost", True)
    away.remote.gate.set()
    await feeder.close()


async def test_a_frame_that_no_layer_has_is_lost(away: Away) -> None:
    feeder, keeper = Feeder(away.node.store, away.snapshot), Keeper()
    feeder.join(keeper.request)
    feeder.want([(0, 3), (0, 16)])
    op, params = await keeper.next()
    assert (op, "has no frame 16" in params["message"]) == ("pager-lost", True)
    await feeder.close()


async def test_what_a_machine_reads_stays_until_it_has_ended(away: Away) -> None:
    store, digest = away.node.store, away.snapshot.digest
    feeder = await feeding.opened(store, away.snapshot)
    assert feeder is not None
    store.remove([digest])
    assert store.get(digest) == away.snapshot
    away.bring(lazy=False)
    with pytest.raises(Conflict, match="being read"):
        transfer.evict(store, away.snapshot, away.remote)
    await feeder.close()
    assert transfer.evict(store, away.snapshot, away.remote) > 0
    store.remove([digest])
    assert store.digests() == []


async def test_of_what_is_here_nothing_is_fed(away: Away) -> None:
    away.bring(lazy=False)
    assert await feeding.opened(away.node.store, away.snapshot) is None


async def test_the_next_node_feeds_what_the_map_says(away: Away) -> None:
    """Also where the layer was pulled meanwhile: the pager reads the cache's file."""
    keeper: Any = Keeper()
    path = (await asyncio.to_thread(away.prepared)).memory_map
    away.bring(lazy=False)
    store, digest = away.node.store, away.snapshot.digest
    assert await feeding.again(store, digest, path, keeper, {"resident": True}) is None
    feeder = await feeding.again(store, digest, path, keeper, {"resident": False})
    assert feeder is not None
    feeder.join(keeper.request)
    feeder.want([(0, number) for number in range(16)])
    have: list[int] = []
    while len(have) < 16:  # it may be told in several pieces
        op, params = await keeper.next()
        assert op == "pager-have"
        have += [number for _, number in params["frames"]]
    assert away.cached() == away.content
    await feeder.close()
    path.write_bytes((await asyncio.to_thread(away.prepared)).memory_map.read_bytes())  # all is here now
    assert await feeding.again(store, digest, path, keeper, {"resident": False}) is None


async def test_a_machine_that_the_next_node_cannot_feed_is_told(away: Away) -> None:
    keeper: Any = Keeper()
    path = (await asyncio.to_thread(away.prepared)).memory_map
    away.node.store.remove([away.snapshot.digest])
    assert await feeding.again(away.node.store, away.snapshot.digest, path, keeper, {"resident": False}) is None
    op, params = await keeper.next()
    assert (op, "is not in the store" in params["message"]) == ("pager-lost", True)


async def test_a_keeper_that_is_gone_is_nobody_to_tell(away: Away) -> None:
    async def gone(op: str, **params: Any) -> None:
        raise MachineFailed("the keeper is gone")

    feeder = Feeder(away.node.store, away.snapshot)
    feeder.join(gone)
    feeder.want([(0, 1)])
    await asyncio.wait_for(asyncio.gather(*feeder._tasks), DEADLINE_S)
    await feeder.close()
