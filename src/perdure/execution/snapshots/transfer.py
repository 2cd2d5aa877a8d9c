"""Snapshots between this machine and stores beyond it: push, pull, attach, evict. Blocking: run it in a thread.

A snapshot restores only with its template and its image, so they travel too, once per store. What ``pull`` brings is
verified whole. ``attach`` brings all but the memory layers, of which it brings the indexes: their frames are read
when a machine wants them (``cache``).
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from perdure.errors import Conflict, InvalidValue, NotFound, PerdureError, SnapshotInvalid
from perdure.execution.images.library import ImageLibrary
from perdure.execution.registry.contract import INTERNAL_TAGS as INTERNAL_TAGS
from perdure.execution.registry.contract import RemoteStore
from perdure.execution.registry.upload import Parcel, Sent, send
from perdure.execution.snapshots import cachefile, image_artifact, spaces, template_artifact, templates
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.stores.download import Download
from perdure.execution.snapshots.stores.folder import FolderStore
from perdure.formats import artifact, manifest, workingset
from perdure.formats.artifact import EMPTY, EMPTY_BYTES, WORKING_SET, Artifact
from perdure.formats.manifest import MANIFEST, Descriptor, Snapshot, check_digest, digest_of
from perdure.host.progress import Progress, silent

_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_INDEXES = 8  # at once


def tag_of(digest: str) -> str:
    """What names a snapshot in a store when nothing else is asked for."""
    return f"snapshot-{check_digest(digest)[:32]}"


def kept_tag(digest: str) -> str:
    """What keeps a snapshot that was pulled, in the index of the local store, until a sandbox names it."""
    return f"pulled-{check_digest(digest)[:32]}"


def push(
    store: Store,
    templates_folder: Path,
    images: ImageLibrary,
    snapshot: Snapshot,
    remote: RemoteStore,
    tag: str = "",
    progress: Progress = silent,
) -> Sent:
    """Bring a snapshot, its template and its image to ``remote``, where ``tag`` (default: ``tag_of``) names it then.

    What is there already is skipped, so a push that failed goes on where it was. Raises NotFound (a part is not here),
    SnapshotInvalid (a part here was damaged), Conflict, and what the store raises; the tag is then as it was.
    """
    _refuse_itself(store, remote)
    with packed(store, templates_folder, images, snapshot, tag, remote) as parcels:
        sent = send(remote, parcels, progress)
    for layer in snapshot.memory.layers:
        if store.blob_path(layer.digest).exists():
            store.note(layer, remote.url)  # so that it is known where to evict it to
    return sent


@contextlib.contextmanager
def packed(
    store: Store,
    templates_folder: Path,
    images: ImageLibrary,
    snapshot: Snapshot,
    tag: str = "",
    remote: RemoteStore | None = None,
) -> Iterator[list[Parcel]]:
    """A snapshot and all that it needs, for ``remote`` or to be taken elsewhere; their files stay while this is held.

    Raises NotFound (a part is neither here nor in ``remote``), SnapshotInvalid.
    """
    config = snapshot.config
    template = templates.load(templates_folder, config.template, config.template_digest)
    if template.digest != config.template_digest:
        raise SnapshotInvalid(f"template {template.name} is not the one that snapshot {snapshot.digest} lies over")
    parcels = [template_artifact.parcel(template)]
    if config.image_digest:
        parcels.append(image_artifact.parcel(images, config.image_digest))
    with tempfile.TemporaryDirectory(prefix="perdure-push-") as scratch:
        if working_set := store.working_set(snapshot.digest):
            parcels.append(_working_set_parcel(store, snapshot, working_set, Path(scratch)))
        parcels.append(_snapshot_parcel(store, snapshot, remote, tag or tag_of(snapshot.digest)))
        yield parcels


def pull(
    store: Store,
    templates_folder: Path,
    images: ImageLibrary,
    remote: RemoteStore,
    reference: str,
    progress: Progress = silent,
    *,
    is_kept: bool = False,
) -> Snapshot:
    """The snapshot that ``reference`` (a tag, or a manifest's digest) names in ``remote``, all of it, verified.

    Raises NotFound, SnapshotInvalid (it is not what was captured), ImageInvalid, NoSpace, and what the store raises;
    the snapshot is then not here, and what came whole is skipped next time. ``is_kept``: tagged in the store
    (``kept_tag``), so that it stays although nobody names it.
    """
    return _bring(store, templates_folder, images, remote, reference, progress, is_lazy=False, is_kept=is_kept)


def attach(
    store: Store,
    templates_folder: Path,
    images: ImageLibrary,
    remote: RemoteStore,
    reference: str,
    progress: Progress = silent,
    *,
    is_kept: bool = False,
) -> Snapshot:
    """As ``pull``, but memory layers stay in ``remote``: only their indexes come, and the store notes where they are.

    A layer that is here already stays here. Raises Conflict when the store has nothing to open them with.
    """
    if store.elsewhere is None:
        raise Conflict(f"the store {store.folder} was opened without a cache of frames", hint="Pull it instead.")
    return _bring(store, templates_folder, images, remote, reference, progress, is_lazy=True, is_kept=is_kept)


def evict(store: Store, snapshot: Snapshot, remote: RemoteStore) -> int:
    """Delete the local copies of the memory layers, which ``remote`` must hold: then it is as after ``attach``.

    The bytes freed. That the store holds them is seen by their size and by their indexes, with the checksums of all
    frames. Not for a snapshot that is being restored. Raises NotFound (it does not hold one: push first),
    SnapshotInvalid (it holds something else), Conflict (it is being read), and what the store raises; nothing is
    deleted then.
    """
    _refuse_itself(store, remote)
    held = [layer for layer in snapshot.memory.layers if store.blob_path(layer.digest).exists()]
    for layer in held:
        if not remote.has(layer):
            raise NotFound(f"{remote.url} does not hold layer {layer.digest}", hint="Push the snapshot there first.")
        path = store.verified(layer)

        def theirs(offset: int, length: int, layer: Descriptor = layer) -> bytes:
            return remote.read(layer, offset, length)

        def ours(offset: int, length: int, path: Path = path) -> bytes:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(length)

        if cachefile.fetch_index(theirs, layer.size) != cachefile.fetch_index(ours, layer.size):
            raise SnapshotInvalid(f"{remote.url} holds other bytes for layer {layer.digest}")
    return store.drop(held, remote.url)


def pushed_to(store: Store, snapshot: Snapshot) -> str:
    """The URL of the store that its memory was pushed to last; empty: it was not, or nothing of it is here.

    Raises SnapshotInvalid (a note does not read).
    """
    here = [layer for layer in snapshot.memory.layers if store.blob_path(layer.digest).exists()]
    return store.place(here[-1]) if here else ""


def _bring(
    store: Store,
    templates_folder: Path,
    images: ImageLibrary,
    remote: RemoteStore,
    reference: str,
    progress: Progress,
    *,
    is_lazy: bool,
    is_kept: bool,
) -> Snapshot:
    _refuse_itself(store, remote)
    data = remote.manifest(reference)
    with Download(remote, progress, "Attaching" if is_lazy else "Pulling") as download:
        config = download.small(manifest.config_of(data))
        snapshot = _checked(manifest.decode(data, config), remote)
        lazy = snapshot.memory.layers if is_lazy else []
        wanted = [blob for blob in snapshot.descriptors if blob not in lazy]
        facts = snapshot.config
        with store.arriving(data, config):  # from here on nothing of it is removed
            missing = _missing(store, wanted)
            download.expect(missing)
            template = template_artifact.fetch(templates_folder, facts.template, facts.template_digest, download)
            if facts.image_digest:
                image_artifact.fetch(images, facts.image_digest, download)
            _bring_indexes(store, lazy, remote)
            download.into_store(store, missing)
            for layer in lazy:
                if not store.blob_path(layer.digest).exists():
                    store.note(layer, remote.url)
            with spaces.memory_of(store, snapshot, template), spaces.disk_of(store, snapshot, snapshot.disk.size):
                pass  # chain, bases and maps were verified
            brought = store.adopt(data, config, kept_tag(snapshot.digest) if is_kept else "")
            _bring_working_set(store, snapshot, download)
    return brought  # not read again: another may have removed it by now


def _bring_indexes(store: Store, lazy: Sequence[Descriptor], remote: RemoteStore) -> None:
    """All at once: each costs a round trip or two."""
    absent = [layer for layer in lazy if not store.blob_path(layer.digest).exists()]
    elsewhere = store.elsewhere
    if not absent or elsewhere is None:  # ``attach`` has refused the latter
        return
    with ThreadPoolExecutor(min(_INDEXES, len(absent))) as pool:
        list(pool.map(lambda layer: elsewhere.open(layer, remote.url).close(), absent))


def _checked(snapshot: Snapshot, remote: RemoteStore) -> Snapshot:
    """What becomes a path or a number later must be one: another machine wrote it."""
    config = snapshot.config
    if not _TEMPLATE_NAME.fullmatch(config.template):
        raise SnapshotInvalid(f"{remote.url}: the snapshot's template has no possible name: {config.template!r}")
    check_digest(f"sha256:{config.template_digest}")
    if config.image_digest:
        check_digest(config.image_digest)
    for blob in snapshot.descriptors:
        check_digest(blob.digest)
    return snapshot


def _missing(store: Store, descriptors: Sequence[Descriptor]) -> list[Descriptor]:
    """Those that are not here, or not whole: a blob that was damaged here is brought again."""
    missing = []
    for blob in {blob.digest: blob for blob in descriptors}.values():
        try:
            store.verified(blob)
        except (NotFound, SnapshotInvalid):
            missing.append(blob)
    return missing


def _snapshot_parcel(store: Store, snapshot: Snapshot, remote: RemoteStore | None, tag: str) -> Parcel:
    data = store.blob_path(snapshot.digest).read_bytes()
    blobs = []
    for blob in (manifest.config_of(data), *snapshot.descriptors):
        path = store.blob_path(blob.digest)
        if not path.exists() and not (remote is not None and remote.has(blob)):
            where = store.place(blob)
            raise NotFound(
                f"blob {blob.digest} ({blob.media_type}) is "
                + (f"neither here nor in {remote.url}" if remote is not None else "not here"),
                hint=f"It is in {where}: pull it from there first." if where else "Push another snapshot.",
            )
        blobs.append((blob, path))
    return Parcel(tag, data, blobs)


# The working set is a hint that makes a restore faster: it travels beside the snapshot, and may be missing.


def _working_set_tag(digest: str) -> str:
    return f"working-set-{check_digest(digest)[:32]}"


def _working_set_parcel(store: Store, snapshot: Snapshot, working_set: Sequence[int], scratch: Path) -> Parcel:
    blocks = array("I", working_set).tobytes()
    blobs = []
    for name, data, media_type in (("config", EMPTY_BYTES, EMPTY), ("blocks", blocks, WORKING_SET)):
        (scratch / name).write_bytes(data)
        blobs.append((Descriptor(media_type=media_type, digest=digest_of(data), size=len(data)), scratch / name))
    size = store.blob_path(snapshot.digest).stat().st_size
    subject = Descriptor(media_type=MANIFEST, digest=snapshot.digest, size=size)
    held = Artifact(kind=WORKING_SET, config=blobs[0][0], layers=[blobs[1][0]], subject=subject)
    return Parcel(_working_set_tag(snapshot.digest), artifact.encode(held), blobs)


def _bring_working_set(store: Store, snapshot: Snapshot, download: Download) -> None:
    if store.working_set(snapshot.digest):
        return
    try:
        held = artifact.decode(download.remote.manifest(_working_set_tag(snapshot.digest)), WORKING_SET)
        data = download.small(held.one(WORKING_SET))
    except PerdureError:
        return  # none was recorded, or it does not come: it only saves time
    if len(data) % 4 == 0 and len(data) <= 4 * workingset.BLOCKS_MAX:
        store.keep_working_set(snapshot.digest, array("I", data))


def _refuse_itself(store: Store, remote: RemoteStore) -> None:
    """``evict`` would delete the only copy."""
    if isinstance(remote, FolderStore) and remote.folder.resolve() == store.folder.resolve():
        raise InvalidValue(f"{remote.url} is this node's own store", hint="Name a store beyond this machine.")
