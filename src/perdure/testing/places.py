"""Two nodes and a store between them, for snapshots that travel; a store that stalls."""

from __future__ import annotations

import threading
from pathlib import Path

from perdure.execution.registry.contract import RemoteStore
from perdure.execution.registry.upload import Sent
from perdure.execution.snapshots import restore, spaces, templates, transfer
from perdure.execution.snapshots.stores.folder import FolderStore
from perdure.execution.snapshots.templates import Template
from perdure.formats import memorymap
from perdure.formats.manifest import Descriptor, Snapshot
from perdure.testing.snapshots import BLOCKS, facts
from perdure.testing.stores import DEADLINE_S, Counting, Node, block

DISK = b"".join(block(seed) for seed in (1, 0, 2, 0, 0, 3))


class Place:
    """Two nodes and a folder between them; the first node has captured twice."""

    def __init__(self, root: Path) -> None:
        self.here, self.there = Node(root / "here"), Node(root / "there")
        self.remote: Counting = Counting(FolderStore(root / "remote"))
        self.memory = [seed % 7 for seed in range(BLOCKS)]
        self.image = self.here.image()
        self.template = self.here.template(b"".join(map(block, self.memory)))
        self.first = self._capture(self.template, {place: 100 + place for place in range(0, BLOCKS, 2)})
        self.snapshot = self._capture(self.first, {3: 0, 4: 900, 5: 901, 77: 902}, working_set=(4, 5, 77))

    def _capture(
        self, parent: Snapshot | Template, changes: dict[int, int], working_set: tuple[int, ...] = ()
    ) -> Snapshot:
        for place, seed in changes.items():
            self.memory[place] = seed
        changed = {place: block(seed) for place, seed in changes.items()}
        return self.here.capture(parent, changed, DISK, image=self.image, working_set=working_set)

    @property
    def content(self) -> bytes:
        return b"".join(map(block, self.memory))

    def push(self, snapshot: Snapshot | None = None, tag: str = "") -> Sent:
        here = self.here
        return transfer.push(here.store, here.templates, here.images, snapshot or self.snapshot, self.remote, tag)

    def pull(self, node: Node | None = None, reference: str = "") -> Snapshot:
        node = node or self.there
        wanted = reference or transfer.tag_of(self.snapshot.digest)
        return transfer.pull(node.store, node.templates, node.images, self.remote, wanted)

    def attach(self, reference: str = "") -> Snapshot:
        there = self.there
        wanted = reference or transfer.tag_of(self.snapshot.digest)
        return transfer.attach(there.store, there.templates, there.images, self.remote, wanted)


def restored(node: Node, snapshot: Snapshot) -> tuple[bytes, bytes]:
    """(memory, disk) as a restore on this node would have them."""
    template = templates.load(node.templates, snapshot.config.template, snapshot.config.template_digest)
    with spaces.memory_of(node.store, snapshot, template) as memory:
        content = memory.read(0, memory.blocks)
    folder = node.root / "restored"
    folder.mkdir(exist_ok=True)
    files = restore.prepare(node.store, snapshot, folder=folder, templates=node.templates, facts=facts())
    assert files.state.read_bytes() == b"device state"
    assert memorymap.decode(files.memory_map.read_bytes()).template == str(template.memory)
    return content, files.overlay.read_bytes()


class Stalling(Counting):
    """A store that gives nothing of one blob before ``over`` is set. ``reached``: somebody waits for it."""

    def __init__(self, inner: RemoteStore, digest: str) -> None:
        super().__init__(inner)
        self.digest = digest
        self.reached, self.over = threading.Event(), threading.Event()

    def read(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        if descriptor.digest == self.digest:
            self.reached.set()
            assert self.over.wait(DEADLINE_S)
        return super().read(descriptor, offset, length)
