"""What the care of snapshots tells: the values that ``execution.snapshots.care`` makes and the node's API carries.

As in ``model``: msgspec encodes and checks them. Sizes are in bytes; snapshots and layers are named by their digests.
"""

from __future__ import annotations

import msgspec

from perdure.model import Frozen, MemoryUse


class SnapshotSummary(Frozen, frozen=True, kw_only=True):
    """One line of a list of snapshots. ``problem``: why it does not read; then only the digest is known."""

    digest: str
    sandbox_id: str = ""
    sandbox_name: str = ""  # empty: that sandbox is gone
    created: float = 0.0
    parent: str = ""  # a digest, or a template's name
    memory_layers: int = 0
    disk_layers: int = 0
    stored_bytes: int = 0  # by its capture, beyond its parent
    total_bytes: int = 0  # of all blobs that a restore reads
    tags: list[str] = msgspec.field(default_factory=list)
    problem: str = ""


class Pushed(Frozen, frozen=True):
    """A snapshot that a store beyond this machine has now."""

    digest: str
    url: str
    tag: str
    sent_bytes: int
    held_bytes: int  # were there already


class Pulled(Frozen, frozen=True):
    """A snapshot that came from a store beyond this machine."""

    digest: str
    url: str
    reference: str  # the tag or digest that was asked for
    sandbox_id: str  # that it was taken of, on whatever machine
    elsewhere_bytes: int  # of its memory, which come when they are wanted


class LayerMoved(Frozen, frozen=True):
    """A layer of an image on its way."""

    digest: str  # of its blob
    how: str  # pulled: "there", "fetched"; pushed: "there", "brought" (from another repository there), "sent"


class ImagePulled(Frozen, frozen=True, kw_only=True):
    """An image that came from a registry."""

    name: str  # NAME:TAG or NAME@sha256:HEX
    place: str  # HOST/PATH
    digest: str  # what the registry has under that name: a manifest, or an index that lists it
    image: str  # digest of the image here
    is_new: bool  # false: it was here already
    layers: list[LayerMoved] = msgspec.field(default_factory=list)  # lowest first


class ImagePushed(Frozen, frozen=True, kw_only=True):
    """An image that went to a registry."""

    name: str
    place: str  # HOST/PATH
    tag: str
    digest: str  # of its manifest
    size: int  # of its manifest, in bytes
    layers: list[LayerMoved] = msgspec.field(default_factory=list)  # lowest first


class Evicted(Frozen, frozen=True):
    """A snapshot whose memory is only in a store beyond this machine now."""

    digest: str
    url: str
    freed_bytes: int


class Finding(Frozen, frozen=True, kw_only=True):
    """One thing that is not as it must be."""

    object: str  # what it is in: "snapshot sha256:…", "template NAME", "the store"
    problem: str
    layer: str = ""  # hex digits of its digest
    frame: int | None = None  # number within the layer
    hint: str = ""


class NotRestored(Frozen, frozen=True, kw_only=True):
    """A snapshot that a thorough verification did not restore, although nothing that is here of it is wrong."""

    snapshot: str  # its digest
    reason: str
    hint: str  # how to have it restored


class Verification(Frozen, frozen=True, kw_only=True):
    """What was verified, and what was found. The counts are of what was looked at, each thing once."""

    findings: list[Finding] = msgspec.field(default_factory=list)
    snapshots: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    frames: int = 0
    content_bytes: int = 0  # of the frames, decompressed
    restored: int = 0  # snapshots that were restored for real
    not_restored: list[NotRestored] = msgspec.field(default_factory=list)  # and those that should have been
    remote: list[str] = msgspec.field(default_factory=list)  # layers that are kept elsewhere, not fetched for this
    orphans: int = 0  # blobs that no manifest needs: nothing is wrong with that, garbage collection takes them
    orphan_bytes: int = 0


class LayerUse(Frozen, frozen=True, kw_only=True):
    """What one layer gives to a snapshot. Dead blocks are those that a layer above it replaced."""

    digest: str
    stored_bytes: int  # the file
    frames: int
    blocks: int
    live_blocks: int
    live_bytes: int  # decompressed
    live_stored_bytes: int  # compressed; of a frame that is partly dead its share
    dead_bytes: int
    dead_stored_bytes: int


class SpaceUse(Frozen, frozen=True, kw_only=True):
    """Where a byte space (memory or disk) comes from."""

    size_bytes: int
    zero_bytes: int
    template_bytes: int
    layers: list[LayerUse]  # oldest first
    duplicate_bytes: int = 0  # blocks of layers whose content another block of them has
    map_bytes: int = 0


class WorkingSetUse(Frozen, frozen=True, kw_only=True):
    """What a restore pushes before it is asked: the blocks that were touched first after an earlier one."""

    blocks: int = 0
    zero_bytes: int = 0
    template_bytes: int = 0
    layer_bytes: int = 0
    frames: int = 0
    frame_bytes: int = 0  # decompressed
    frame_stored_bytes: int = 0  # compressed: what is read
    reads: int = 0  # pieces of files that they lie in; 1: one sequential read


class Explanation(Frozen, frozen=True, kw_only=True):
    """Where the bytes of a snapshot are."""

    digest: str
    memory: SpaceUse
    disk: SpaceUse
    state_bytes: int
    stored_bytes: int  # by its capture, beyond its parent
    total_bytes: int  # of all blobs that a restore reads
    own_bytes: int  # of the blobs that no other snapshot needs: what removing it would free
    working_set: WorkingSetUse
    compaction_due: bool
    memory_use: MemoryUse | None = None


class TreeNode(Frozen, frozen=True, kw_only=True):
    """A template, or a snapshot in the tree of what was made from what.

    A tree is a list in the order in which it is drawn: after a snapshot come the branches that leave it, then its own
    line goes on. ``depth`` is the number of branches to it; a template has 0, and each snapshot on it begins one.
    """

    kind: str  # "template" or "snapshot"
    name: str  # the template's name, or the snapshot's digest
    depth: int = 0
    branch: bool = False  # it begins one; otherwise it goes on from the snapshot of this depth before it
    parent: str = ""  # the name of what it was made from
    lost_parent: str = ""  # the digest of that, where it is not there any more; ``parent`` is the template then
    sandbox_id: str = ""
    sandbox_name: str = ""
    created: float = 0.0
    stored_bytes: int = 0
    tags: list[str] = msgspec.field(default_factory=list)


class Compaction(Frozen, frozen=True, kw_only=True):
    """A snapshot was rewritten."""

    before: SnapshotSummary
    after: SnapshotSummary
    freed_bytes: int = 0


class Swept(msgspec.Struct, kw_only=True):
    """What a sweep of the store deleted, or would delete."""

    forgotten: list[str] = msgspec.field(default_factory=list)  # snapshots
    leased: list[str] = msgspec.field(default_factory=list)  # not needed, but being read or stored: the next takes them
    unreadable: dict[str, str] = {}  # why; what such a snapshot needs is not known, so no blob is deleted
    blobs: int = 0
    blob_bytes: int = 0
    working_sets: int = 0
    left_over: int = 0  # files of writers that died
    templates: list[str] = msgspec.field(default_factory=list)
    template_bytes: int = 0
