"""``fcrun`` on a home whose file system is really full: what is there is shown, and what is removed makes room."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import NoSpace
from perdure.execution.images.library import ImageLibrary
from perdure.formats.manifest import Snapshot
from perdure.host.paths import Home
from perdure.model import SandboxSpec
from perdure.testing import smalldisks, stillmachines
from perdure.testing.commands import Fcrun
from perdure.testing.snapshots import BLOCKS, block, blocks_of
from perdure.testing.stores import Node

BOX, FORK = "b0b0b0b0b0b0", "f0f0f0f0f0f0"
DISK = blocks_of(range(30))
LARGE = 500 << 10  # bytes that each of these frees, at least


@pytest.fixture(params=["pages", "names"])
def full(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class House:
    """A node in a small file system. BOX was suspended twice, FORK once; an image that nobody uses."""

    def __init__(self, small: Path) -> None:
        self.small = small
        self.home = Home(small / "home", small.parent / "cache").make()
        with Node(self.home.root) as node:
            template = node.template(blocks_of([1] * BLOCKS))
            self.line: list[Snapshot] = []
            for number in range(2):
                changed = {place: block(1000 * number + place) for place in range(200)}
                parent = self.line[-1] if self.line else template
                self.line.append(node.capture(parent, changed, DISK, sandbox_id=BOX, image=node.image()))
            changed = {place: block(5000 + place) for place in range(200)}
            self.fork = node.capture(template, changed, DISK, sandbox_id=FORK, image=node.image())
            self.unnamed = node.capture(template, {3: block(3)}, DISK, sandbox_id="c0c0c0c0c0c0")
            stillmachines.suspended(self.home.root, BOX, self.line, node.image())
            stillmachines.suspended(self.home.root, FORK, [self.fork], node.image())
            self.unused = node.image(os.urandom(LARGE))
        ensure_running(self.home)
        self.fcrun = Fcrun(self.home).said

    def fill(self, full: str) -> None:
        (smalldisks.fill if full == "pages" else smalldisks.fill_names)(self.small, 0)

    def free_bytes(self) -> int:
        facts = os.statvfs(self.small)
        return facts.f_bavail * facts.f_frsize


@pytest.fixture
def house(tmp_path: Path, full: str) -> Iterator[House]:
    with smalldisks.mounted(tmp_path / "small", 16) as small:
        house = House(small)
        try:
            yield house
        finally:
            smalldisks.clear(small)
            NodeClient(house.home).shutdown()


@pytest.mark.parametrize(
    ("argv", "frees"),
    [
        (("rm", BOX), 2 * LARGE),
        (("snapshot", "rm", "--force", BOX), LARGE),
        (("snapshot", "gc"), 0),
        (("rmi", "UNUSED"), LARGE),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_removed_makes_room(house: House, full: str, argv: tuple[str, ...], frees: int) -> None:
    house.fill(full)
    before = house.free_bytes()
    assert house.fcrun("ps", "-a", "-q").split()
    digests = {json.loads(line)["digest"] for line in house.fcrun("snapshot", "ls", "--format", "json").splitlines()}
    house.fcrun(*(house.unused if word == "UNUSED" else word for word in argv))
    assert house.free_bytes() - before >= frees
    left = {json.loads(line)["digest"] for line in house.fcrun("snapshot", "ls", "--format", "json").splitlines()}
    gone = {
        "rm": {one.digest for one in house.line},
        "snapshot rm": {house.line[1].digest},
        "snapshot gc": {house.unnamed.digest},
    }.get(" ".join(argv[:2]) if argv[0] == "snapshot" else argv[0], set())
    assert digests - left == gone
    if argv[0] == "rmi":
        assert house.unused not in [image.digest for image in ImageLibrary(house.home.images).list()]
    smalldisks.clear(house.small)
    house.fcrun("rm", FORK)
    assert (house.home.root / "headroom").stat().st_size > 0  # for the next time


@pytest.mark.parametrize("full", ["pages"], indirect=True)  # its socket needs a name
def test_a_node_starts_where_room_is_to_be_made(house: House, full: str) -> None:
    """Also with a snapshot that nobody names, of a suspend that a killed node did not live to write down."""
    client = NodeClient(house.home)
    client.shutdown()
    newest = house.line[-1]
    with Node(house.home.root) as node:
        lost = node.capture(newest, {7: block(77)}, DISK, sandbox_id=BOX, image=newest.config.image_digest)
    house.fill(full)
    before = house.free_bytes()
    assert len(house.fcrun("ps", "-a", "-q").split()) == 2
    house.fcrun("rm", BOX)
    assert house.free_bytes() - before >= 2 * LARGE
    assert lost.digest not in [one.digest for one in client.store.list()]


def test_a_sandbox_that_finds_no_room_for_its_files_leaves_none(tmp_path: Path) -> None:
    with smalldisks.mounted(tmp_path / "roomy", 512) as roomy:  # one needs 256 MiB to be free
        house = House(roomy)
        client, sandboxes = NodeClient(house.home), house.home.sandboxes
        before = sorted(path.name for path in sandboxes.iterdir())
        spec = SandboxSpec(image=house.unused, command=["/bin/true"])
        smalldisks.fill_names(roomy, 1)
        for _ in range(2):  # the one name that is left is not lost
            with pytest.raises(NoSpace, match="no space left"):
                client.create(spec)
            assert sorted(path.name for path in sandboxes.iterdir()) == before
        smalldisks.clear(roomy)
        client.create(spec)
        client.shutdown()
