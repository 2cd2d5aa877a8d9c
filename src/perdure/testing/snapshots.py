"""A store, a sealed template with given memory, and a way to capture generations without a machine."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path

from perdure.execution.snapshots import capture, templates
from perdure.execution.snapshots.diskchanges import Ranges
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.templates import Template
from perdure.formats import capturefile
from perdure.formats.blockmap import BASE, BLOCK, LAYER, NO_BASE, ZERO, Run, joined
from perdure.formats.manifest import Facts, Snapshot

BLOCKS = 256  # of guest memory, where nothing else is said: 1 MiB
IMAGE = "sha256:" + "1" * 64


def block(seed: int) -> bytes:
    """A block that does not compress well; seed 0 is zeros."""
    return random.Random(seed).randbytes(BLOCK) if seed else bytes(BLOCK)


def blocks_of(seeds: Iterable[int]) -> bytes:
    """Such blocks, one after the other."""
    return b"".join(block(seed) for seed in seeds)


def facts(blocks: int = BLOCKS) -> Facts:
    return Facts(
        firecracker="1.12.1",
        cpu_vendor="AuthenticAMD",
        cpu_family=25,
        vcpus=1,
        memory_mib=blocks * BLOCK >> 20,
        kernel="sha256:" + "2" * 64,
        guestd="sha256:" + "3" * 64,
    )


class Bench:
    """One node's store and templates in a folder, and what a keeper would have captured."""

    def __init__(self, root: Path, blocks: int = BLOCKS) -> None:
        self.root = root
        self.blocks = blocks
        self.templates = root / "templates"
        self.store = Store(root / "store")
        self.templates.mkdir(parents=True, exist_ok=True)

    def template(self, memory: bytes, name: str = "warm") -> Template:
        folder = self.root / "building"
        folder.mkdir(exist_ok=True)
        held = {place: memory[place * BLOCK : (place + 1) * BLOCK] for place in range(len(memory) // BLOCK)}
        (folder / "memory").write_bytes(captured(held, self.blocks))
        (folder / "state").write_bytes(b"state of the template")
        templates.seal(folder, self.templates / name, facts(self.blocks))
        return templates.load(self.templates, name)

    def capture(
        self,
        parent: Snapshot | Template,
        memory: dict[int, bytes],
        disk: bytes,
        *,
        state: bytes = b"device state",
        working_set: tuple[int, ...] = (),
        sandbox_id: str = "0123456789ab",
        image: str = IMAGE,
        over: Template | None = None,
        changed: Ranges | None = None,
    ) -> Snapshot:
        """``memory``: the blocks that the capture holds; ``disk``: all of it, its blocks of zeros are holes;
        ``changed``: where to look for changes of it."""
        folder = self.root / "captured"
        folder.mkdir(exist_ok=True)
        (folder / "memory").write_bytes(captured(memory, self.blocks, over))
        blocks = {at // BLOCK: disk[at : at + BLOCK] for at in range(0, len(disk), BLOCK)}
        held = {block: data for block, data in blocks.items() if data != bytes(BLOCK)}
        sparse_file(self.root / "overlay", held, len(blocks))
        (folder / "state").write_bytes(state)
        return capture.pack(
            self.store,
            folder=folder,
            overlay=self.root / "overlay",
            changed=changed,
            parent=parent,
            templates=self.templates,
            sandbox_id=sandbox_id,
            image_digest=image,
            working_set=working_set,
        )

    def left_over(self) -> list[str]:
        """What should not be there after anything."""
        return [str(path) for path in (self.store.folder / "ingest").iterdir()]


def captured(memory: dict[int, bytes], count: int, over: Template | None = None) -> bytes:
    """A capture file of these blocks. ``over``: what is this template's is only named, as the collector does it."""
    under = b"" if over is None else over.memory.read_bytes()
    runs: list[Run] = []
    data: list[bytes] = []
    for place, content in sorted(memory.items()):
        if content == bytes(BLOCK):
            runs.append(Run(place, 1, ZERO))
        elif under.startswith(content, place * BLOCK):
            runs.append(Run(place, 1, BASE, place))
        else:
            runs.append(Run(place, 1, LAYER, len(data)))
            data.append(content)
    base = NO_BASE if over is None else bytes.fromhex(over.digest)
    return capturefile.encode(count, joined(runs), b"".join(data), base)


def sparse_file(path: Path, blocks: dict[int, bytes], count: int) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb", buffering=0) as file:
        file.truncate(count * BLOCK)
        for block, data in blocks.items():
            assert os.pwrite(file.fileno(), data, block * BLOCK) == BLOCK
