"""A real fcrund with the image ``tiny``, for what needs no machine; and a sandbox on it that sleeps."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.formats.manifest import Snapshot
from perdure.host import below
from perdure.host.paths import Home
from perdure.model import SandboxSpec
from perdure.testing.sandboxes import sleeping
from perdure.testing.snapshots import BLOCKS, Bench, block, blocks_of

BOX = "b0b0b0b0b0b0"
TINY = SandboxSpec(image="tiny", command=["/bin/true"])


def root_tar(extra: Mapping[str, bytes] | None = None) -> bytes:
    """The tar of a root file system with ``/bin/true``, and these files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for folder in ("bin", "etc", "tmp"):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for name, data in {
            "bin/true": Path("/bin/true").read_bytes(),
            "etc/passwd": b"root:x:0:0::/:/bin/sh\n",
            **(extra or {}),
        }.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def new_home(folder: Path) -> Home:
    """The home of a node that will make images; the test is skipped where nothing can."""
    if shutil.which("mksquashfs") is None:
        pytest.skip("mksquashfs is not installed")
    return Home(folder / "home", folder / "cache").make()


def box_asleep(home: Home, **values: Any) -> Snapshot:
    """Put a suspended sandbox ``box`` there before the node starts; its snapshot. ``values`` of its record differ."""
    bench = Bench(home.root)
    template = bench.template(blocks_of([1] * BLOCKS))
    snapshot = bench.capture(template, {3: block(7)}, blocks_of(range(9)), sandbox_id=BOX)
    facts = {"template": template.name, "template_digest": template.digest} | values
    sleeping(home.sandboxes, BOX, "box", [snapshot], **facts)
    return snapshot


@contextmanager
def tiny_node(home: Home) -> Iterator[NodeClient]:
    """The node runs, and has the image; it ends afterwards. Nothing that is done with it may want a machine."""
    ensure_running(home)
    client = NodeClient(home)
    try:
        client.import_image("tiny", root_tar())
        yield client
    finally:
        client.shutdown()
        was_started = below.stop(home)
    assert not was_started, "a test without VM started what runs VMs: an emulated host costs minutes"
