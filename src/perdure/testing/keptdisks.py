"""A sandbox with a kept disk, and what must hold of that disk whatever happened."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from perdure.execution.sandboxes.record import Folder
from perdure.execution.snapshots import diskchanges, spaces
from perdure.formats.blockmap import BLOCK
from perdure.testing import dying, stillmachines
from perdure.testing.dying import BOX, BOX_WRITES
from perdure.testing.snapshots import BLOCKS, block, blocks_of
from perdure.testing.stillmachines import Writes
from perdure.testing.stores import Node

FIRST = blocks_of([*range(1, 20), *[0] * 30])
SECOND = FIRST[:BLOCK] + block(500) + FIRST[2 * BLOCK :]


class Lived:
    """A sandbox (BOX) that was suspended three times, and its disk beside it as it was the last time.

    ``line``: its snapshots, oldest first; ``disks``: what was on the disk at each.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        with Node(root) as node:
            image = node.image()
            template = node.template(blocks_of([1] * BLOCKS))
            first = node.capture(template, {}, FIRST, sandbox_id=BOX, image=image)
            second = node.capture(first, {}, SECOND, sandbox_id=BOX, image=image)
            stillmachines.suspended(root, BOX, [first, second], image)
            assert dying.run(root, "suspend", "", 0, done=False) == 0
            self.line = [first.digest, second.digest, node.store.digests()[-1]]
        self.disks = dict(zip(self.line, (FIRST, SECOND, written(SECOND, BOX_WRITES)), strict=True))
        assert kept_in(root) == self.disks[self.line[-1]]


def restamp(root: Path) -> None:
    """A copy is another file; here it stands for the one that was copied."""
    folder = Folder(root / "sandboxes" / BOX)
    index = diskchanges.load(folder.disk_index, folder.load().parent)
    assert index is not None
    diskchanges.save(folder.disk_index, dataclasses.replace(index, stamp=diskchanges.stamp_of(folder.disk)))


def kept_in(root: Path) -> bytes | None:
    """The content of the kept disk, which the next resume takes as it is; None: there is none.

    One that the next resume would not take is nobody's: an AssertionError.
    """
    folder = Folder(root / "sandboxes" / BOX)
    if not folder.disk.exists():
        return None
    index = diskchanges.load(folder.disk_index, folder.load().parent)
    assert index is not None
    assert diskchanges.stamp_of(folder.disk) == index.stamp
    return folder.disk.read_bytes()


def stored(node: Node, digest: str) -> bytes:
    """The disk of a snapshot, as the store has it."""
    snapshot = node.store.get(digest)
    with spaces.disk_of(node.store, snapshot, snapshot.disk.size) as disk:
        return disk.read(0, snapshot.disk.size // BLOCK)


def written(content: bytes, writes: Writes) -> bytes:
    """What is on a disk after these writes."""
    held = bytearray(content)
    for number, data in writes.items():
        held[number * BLOCK : (number + 1) * BLOCK] = data
    return bytes(held)
