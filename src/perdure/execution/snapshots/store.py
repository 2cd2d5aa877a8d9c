"""Where layers and manifests live: a folder in the OCI image layout.

    FOLDER/oci-layout  index.json           which manifests there are
           blobs/sha256/HEX                 every blob, immutable
           ingest/                          what is being stored (``ingest``)
           working-sets/HEX                 which blocks a machine touched first after a restore (may be lost)
           leases/HEX                       locked by whoever reads that snapshot
           lease.lock                       the same for every snapshot, where there is no room for one of its own
           remotes/HEX                      where a memory layer is whose bytes are not here
           lock                             held shared while a name is changed, exclusive by whoever deletes or sweeps

A blob is written beside, synced, and renamed to its digest; a snapshot exists from the moment ``index.json`` names
it. So a crash or a full disk at any point leaves what was there before, and the next ``Store`` sweeps the rest.

``lock`` is held shared for moments only, so nobody who deletes waits for a capture, or with a pull for another machine.
What they need meanwhile is kept by locks that a process which dies lets go of: a file in ``ingest/`` is its writer's,
what was stored within ``writing`` is claimed in one of those, and a snapshot on its way here is leased (``arriving``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from perdure.errors import Conflict, NoSpace, NotFound, PerdureError, SnapshotInvalid
from perdure.execution.snapshots import ingest, sweep
from perdure.execution.snapshots.blobwriter import BlobWriter
from perdure.execution.snapshots.diskspace import space_checked
from perdure.execution.snapshots.elsewhere import Elsewhere, Place
from perdure.execution.snapshots.index import Index
from perdure.formats import manifest, workingset
from perdure.formats.manifest import Descriptor, Snapshot, check_digest, digest_of
from perdure.linux import durable
from perdure.reports import Swept

_log = logging.getLogger(__name__)
SMALL_BYTES_MAX = 64 << 20  # of blobs that are read whole: maps, configs, device states


class Store:
    """``Store(home.store)``. Thread-safe, and several processes may use one folder.

    ``elsewhere`` opens the layers that are only noted here, not held.
    """

    def __init__(self, folder: Path, elsewhere: Elsewhere | None = None) -> None:
        self.folder = folder
        self.elsewhere = elsewhere
        self.before_deleting: Callable[[], None] = lambda: None  # in any thread: who is only idle should let go
        self.claims = ingest.Claims(folder / "ingest")
        self._verified: dict[str, tuple[int, int, int]] = {}
        self._guard = threading.Lock()
        with space_checked(str(folder)):
            for part in ("blobs/sha256", "ingest", "working-sets", "leases", "remotes"):
                (folder / part).mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_locks()
            if not (folder / "oci-layout").exists():
                with self.moment():
                    self._replace(folder / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        self._sweep()

    # Blobs

    def blob_path(self, digest: str) -> Path:
        """Where the blob is, or would be. Raises SnapshotInvalid when ``digest`` is not one."""
        return self.folder / "blobs" / "sha256" / check_digest(digest)

    def writer(self, what: str) -> BlobWriter:
        """A new blob; ``what`` names it in errors. Once it is committed, it is ``writing`` or a lease that keeps it."""
        return BlobWriter(self, what)

    def add(self, data: bytes, media_type: str) -> Descriptor:
        """Store a small blob; nothing is written when it is there, whole."""
        descriptor = Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))
        with contextlib.suppress(NotFound, SnapshotInvalid), self.moment(media_type):
            self.claims.add(descriptor.digest)
            self.verified(descriptor)
            return descriptor
        with self.writer(media_type) as writer:
            writer.write(data)
            return writer.commit(media_type)

    def read(self, descriptor: Descriptor) -> bytes:
        """A small blob, verified. Raises NotFound, SnapshotInvalid."""
        path = self._check_size(descriptor)
        if descriptor.size > SMALL_BYTES_MAX:
            raise SnapshotInvalid(f"blob {descriptor.digest} ({descriptor.media_type}) is larger than any of its kind")
        data = path.read_bytes()
        if digest_of(data) != descriptor.digest:
            raise SnapshotInvalid(_damaged(descriptor, path))
        return data

    def verified(self, descriptor: Descriptor) -> Path:
        """The path of a blob whose bytes have its digest (hashed once, and again whenever the file changed)."""
        path = self._check_size(descriptor)
        facts = path.stat()
        seen = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        with self._guard:
            if self._verified.get(descriptor.digest) == seen:
                return path
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if "sha256:" + found != descriptor.digest:
            raise SnapshotInvalid(_damaged(descriptor, path))
        with self._guard:
            self._verified[descriptor.digest] = seen
        return path

    def _check_size(self, descriptor: Descriptor) -> Path:
        path = self.blob_path(descriptor.digest)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise NotFound(
                f"blob {descriptor.digest} ({descriptor.media_type}) is not in the store {self.folder}"
            ) from None
        if size != descriptor.size:
            state = "truncated" if size < descriptor.size else "longer than it was"
            raise SnapshotInvalid(f"{path} is {state}: {size} bytes, {descriptor.size} in the manifest")
        return path

    # Snapshots

    def get(self, digest: str) -> Snapshot:
        """The snapshot whose manifest has this digest. Raises NotFound, SnapshotInvalid."""
        path = self.blob_path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFound(f"snapshot {digest} is not in the store {self.folder}") from None
        if digest_of(data) != digest:
            raise SnapshotInvalid(f"the manifest in {path} does not have its digest: it was damaged or changed")
        return manifest.decode(data, self.read(manifest.config_of(data)))

    def find(self, digest: str) -> Snapshot:
        """The snapshot with this digest, or a unique beginning of it, with or without ``sha256:``.

        Raises NotFound, Conflict (ambiguous), SnapshotInvalid.
        """
        wanted = digest.removeprefix("sha256:")
        found = [one for one in self._index().digests() if one.removeprefix("sha256:").startswith(wanted)]
        if not wanted or not found:
            raise NotFound(f"no such sandbox or snapshot: {digest}", hint="`fcrun snapshot ls` lists the snapshots.")
        if len(found) > 1:
            raise Conflict(f"{digest!r} is ambiguous: it could be {', '.join(found)}", hint="Give more digits of it.")
        return self.get(found[0])

    def snapshots(self, sandbox_id: str | None = None) -> list[Snapshot]:
        """All snapshots, or those of one sandbox, oldest first."""
        found = [self.get(digest) for digest in self.digests()]
        return [snapshot for snapshot in found if sandbox_id in (None, snapshot.config.sandbox_id)]

    def owners(self) -> dict[str, str]:
        """The sandbox (id) of each snapshot (digest) that reads."""
        found = {}
        for digest in self.digests():
            with contextlib.suppress(PerdureError, OSError):
                found[digest] = self.get(digest).config.sandbox_id
        return found

    def digests(self) -> list[str]:
        """The digests of all snapshots, oldest first, also of those that do not read."""
        return [digest for digest in self._index().digests() if self._artifact(digest) in (manifest.ARTIFACT, "")]

    def _artifact(self, digest: str) -> str:
        """What kind of artifact a manifest is; empty: it does not read."""
        try:
            return manifest.artifact_of(self.blob_path(digest).read_bytes())
        except (PerdureError, OSError):
            return ""

    def register(self, snapshot: Snapshot) -> Snapshot:
        """Make the snapshot exist, all its blobs being stored: the last step of a capture. Its digest is filled in."""
        return self.adopt(*manifest.encode(snapshot))

    def adopt(self, data: bytes, config: bytes, tag: str = "") -> Snapshot:
        """``register`` for a snapshot that another store gave: its manifest and config, byte for byte. From the same
        moment on ``tag`` means it, if one is given.

        Raises NotFound where a blob is not here: whoever stored it did not keep it.
        """
        with self.moment():
            self.add(config, manifest.CONFIG)
            descriptor = self.add(data, manifest.MANIFEST)
            for blob in manifest.blobs_of(data):
                if not self.blob_path(blob.digest).exists() and not self.place(blob):
                    what = f"blob {blob.digest} ({blob.media_type}) of a new snapshot"
                    raise NotFound(f"{what} was removed meanwhile", hint="Try again.")
            with self._locked("index.lock", fcntl.LOCK_EX):
                index = self._index()
                known = descriptor.digest in index.digests()
                if tag:
                    index.tag(tag, descriptor)
                elif not known:
                    index.manifests.append(descriptor)
                if tag or not known:
                    self._replace(self.folder / "index.json", msgspec.json.encode(index))
        return self.get(descriptor.digest)

    def tag(self, name: str, manifest: Descriptor) -> None:
        """Let ``name`` mean a manifest that is stored, from now on. Something must keep it until then."""
        with self.moment(), self._locked("index.lock", fcntl.LOCK_EX):
            index = self._index()
            index.tag(name, manifest)
            self._replace(self.folder / "index.json", msgspec.json.encode(index))

    def untag(self, name: str) -> None:
        """Let ``name`` mean nothing any more. What it meant stays registered, and goes once nobody names it."""
        with self.moment(), self._locked("index.lock", fcntl.LOCK_EX):
            index = self._index()
            if index.untag(name):
                self._replace(self.folder / "index.json", msgspec.json.encode(index))

    def tags(self) -> dict[str, str]:
        """The digest that each tag means."""
        return self._index().tags()

    # What is needed, and what is not

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """What this thread stores meanwhile is kept, although nobody names it yet. One who dies lets go of it.

        Others delete and sweep meanwhile: what else is needed must be named, or leased.
        """
        if self.claims.opened:
            yield  # within another one, which ends later
            return
        with self.moment("a snapshot"):
            self.claims.open()
        try:
            yield
        finally:
            self.claims.close()

    @contextlib.contextmanager
    def moment(self, what: str = "") -> Iterator[None]:
        """No sweep is under way. Not while anything is waited for, or much is written. ``what`` names it in errors."""
        with space_checked(what or str(self.folder)), self._locked("lock", fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def reading(self, digest: str) -> Iterator[None]:
        """While a snapshot is being read: no sweep of any process takes it or its blobs. One who dies lets go of it.

        Where there is no room for a lease of its own, everything is leased: sweeps end as ever, but nothing goes.
        """
        with contextlib.ExitStack() as held:
            with self.moment():  # a sweep does not look for leases now
                try:
                    held.enter_context(self._locked(f"leases/{check_digest(digest)}", fcntl.LOCK_SH))
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    # not ``lock``: who deletes something else while he reads would wait for himself
                    held.enter_context(self._locked(sweep.EVERY_LEASE, fcntl.LOCK_SH))
            yield

    @contextlib.contextmanager
    def arriving(self, data: bytes, config: bytes) -> Iterator[None]:
        """While a snapshot comes from another store, for ``adopt`` at the end: its manifest and config.

        It is leased as if it were read: what it names is not swept or dropped, whether it was here before or comes
        meanwhile. It does not exist yet: one who dies leaves blobs that nobody needs. Raises NoSpace.
        """
        with contextlib.ExitStack() as held:
            with self.moment("a lease"):
                held.enter_context(self._locked(f"leases/{check_digest(digest_of(data))}", fcntl.LOCK_SH))
            with self.moment():
                self.add(config, manifest.CONFIG)
                self.add(data, manifest.MANIFEST)
            yield

    def leased(self) -> list[str]:
        """The digests of the snapshots that are read or on their way here, and whose manifests are here."""
        return [digest for digest in sweep.leased(self.folder) if self.blob_path(digest).exists()]

    def remove(self, digests: Iterable[str], *, unless: Callable[[str], bool] = lambda digest: False) -> int:
        """Forget these snapshots and delete the blobs that no other snapshot needs; the bytes freed.

        ``unless(digest)``: it is needed after all. It is asked while nothing is registered, which may come to need it.
        """
        unwanted = set(digests)
        return self.sweep(lambda digest: digest in unwanted and not unless(digest)).blob_bytes if unwanted else 0

    def sweep(
        self,
        unneeded: Callable[[str], bool],
        *,
        dry_run: bool = False,
        then: Callable[[Swept], None] = lambda swept: None,
    ) -> Swept:
        """Forget the manifests for whose digest ``unneeded`` says so, and delete all that no other one needs.

        Nothing is registered meanwhile: what was registered before is there when ``unneeded`` is asked (see ``sweep``).
        ``then``: what is done before anybody writes or takes a lease again; not where everything is leased.
        """
        self.before_deleting()
        with self._locked("lock", fcntl.LOCK_EX), self._locked("index.lock", fcntl.LOCK_EX):
            index = self._index()

            def keep(manifests: list[Descriptor]) -> None:
                index.manifests = manifests
                self._replace(self.folder / "index.json", msgspec.json.encode(index))

            swept = sweep.sweep(self.folder, index.manifests, unneeded, keep=None if dry_run else keep)
            if not sweep.everything_leased(self.folder):
                then(swept)
            return swept

    def _index(self) -> Index:
        return Index.read(self.folder / "index.json")

    # Layers elsewhere

    def note(self, descriptor: Descriptor, url: str) -> None:
        """From now on a layer that is not here is read from the store at ``url``. It must be named, or leased."""
        with self.moment():
            self._note(descriptor, url)

    def _note(self, descriptor: Descriptor, url: str) -> None:
        place = Place(url=url, size=descriptor.size, media_type=descriptor.media_type)
        self._replace(self._note_path(descriptor.digest), msgspec.json.encode(place))

    def place(self, descriptor: Descriptor) -> str:
        """The URL of the store that holds a layer which is not here; empty: none is noted. Raises SnapshotInvalid."""
        path = self._note_path(descriptor.digest)
        try:
            place = msgspec.json.decode(path.read_bytes(), type=Place)
        except FileNotFoundError:
            return ""
        except msgspec.MsgspecError as error:
            hint = "Pull or attach the snapshot again."
            raise SnapshotInvalid(f"{path} does not read: {error}", hint=hint) from None
        return place.url

    def drop(self, descriptors: Iterable[Descriptor], url: str) -> int:
        """Delete the copies here of layers that the store at ``url`` holds, and note so; the bytes freed.

        Raises Conflict while a snapshot that needs one of them is being read, restored, or pulled.
        """
        freed, descriptors = 0, list(descriptors)
        self.before_deleting()
        with self._locked("lock", fcntl.LOCK_EX):
            if sweep.everything_leased(self.folder):
                raise Conflict(
                    "a snapshot is being read, and there was no room to write down which one",
                    hint="Try again when that is done, or free some space: fcrun rm, fcrun snapshot gc.",
                )
            if reader := sweep.reader_of(self.folder, {descriptor.digest for descriptor in descriptors}):
                raise Conflict(
                    f"snapshot {reader} is being read or pulled, or a machine reads its memory from it",
                    hint="Try again when that is done; what it reads stays here until then.",
                )
            for descriptor in descriptors:
                self._note(descriptor, url)
                path = self.blob_path(descriptor.digest)
                freed += path.stat().st_size if path.exists() else 0
                path.unlink(missing_ok=True)
        return freed

    def _note_path(self, digest: str) -> Path:
        return self.folder / "remotes" / check_digest(digest)

    # Working sets

    def keep_working_set(self, digest: str, blocks: Iterable[int]) -> None:
        """Remember which blocks a machine touched first after a restore of ``digest``, in that order.

        Where there is no room it is not kept: it only saves time, and the snapshot is stored by then.
        """
        with contextlib.suppress(NoSpace), self.moment():
            self._replace(self._working_set_path(digest), workingset.encode(blocks), synced=False)

    def working_set(self, digest: str) -> list[int]:
        """What ``keep_working_set`` kept; empty when there is none, or it was damaged: it only saves time."""
        try:
            return workingset.decode(self._working_set_path(digest).read_bytes())
        except FileNotFoundError:
            return []

    def _working_set_path(self, digest: str) -> Path:
        return self.folder / "working-sets" / check_digest(digest)

    # Files

    def _replace(self, path: Path, data: bytes, *, synced: bool = True) -> None:
        temporary = self.folder / "ingest" / f"{os.getpid()}-{secrets.token_hex(6)}"
        try:
            with space_checked(str(path)), temporary.open("xb") as file:
                file.write(data)
                file.flush()
                if synced:
                    os.fsync(file.fileno())
                temporary.rename(path)
                if synced:
                    durable.sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_locks(self) -> None:
        """While there is room: they are wanted above all when there is none."""
        for name in ("lock", "index.lock", sweep.EVERY_LEASE):
            if not (self.folder / name).exists():
                with contextlib.suppress(NoSpace), space_checked(name):  # a store of before there was this one
                    (self.folder / name).touch(mode=0o600)

    @contextlib.contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove what writers that died left behind. While somebody writes, the next ``Store`` does it."""
        try:
            with self._locked("lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                ingest.left_over(self.folder / "ingest")
        except BlockingIOError:
            pass


def _damaged(descriptor: Descriptor, path: Path) -> str:
    return f"{path} ({descriptor.media_type}) does not have the digest {descriptor.digest}: it was damaged or changed"
