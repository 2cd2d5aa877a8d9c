"""The images of one node.

    FOLDER/index.json           the images and their names; the only truth: what it does not list is rubbish
    FOLDER/lock                 flock: held to change the index
    FOLDER/HEX/image.squashfs   the disk; FOLDER/HEX/config.json names it by digest, HEX is the digest of config.json
    FOLDER/new-*/               an image being made; its maker holds a flock on new-*/lock
    FOLDER/blobs, incoming      what images are made from, as registries have it (``blobs``, ``parts``)

An image is made in a ``new-`` folder, synced, renamed, then listed in the index, which is replaced by a rename. A maker
that is killed leaves a folder that nobody holds or a folder that the index does not list; the next maker sweeps both.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import msgspec

from perdure.errors import Conflict, NotFound, PerdureError, ProtocolError, Unsupported
from perdure.execution.images import parts
from perdure.execution.images.blobs import Blobs
from perdure.execution.images.diskerror import disk_error, image_space_checked
from perdure.execution.images.image import Image, ImageConfig
from perdure.execution.images.index import FORMAT, Index, Kept, Record
from perdure.execution.images.parts import Parts
from perdure.formats.references import full_name, known_name
from perdure.linux import durable
from perdure.model import Frozen

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")
REMOVE_TRIES = 5
AGAIN = "Remove it and load the image again."

Listing = list[Image]
Paths = list[Path]
Names = list[str]  # the name "list" is a method below


class Document(Frozen, frozen=True, kw_only=True):
    """``config.json``: canonical (sorted keys), so that equal images have equal digests."""

    version: int
    squashfs: str  # sha256:HEX
    config: ImageConfig


class Shelf:
    """The images that are there: found, listed, named, removed. ``ImageLibrary`` adds how they are made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs = self.blobs = Blobs(folder)

    def get(self, name: str) -> Image:
        """The image of that name, or whose digest starts so (``sha256:`` may be left out). Raises NotFound."""
        index = self._read()
        digest, found = self._find(index, name)
        return self._image(digest, found, index.images[digest])

    def export(self, digest: str) -> tuple[Path, Path]:
        """The two files that an image consists of: (config.json, image.squashfs). Raises NotFound, ProtocolError."""
        image = self.get(digest)
        return image.squashfs.with_name("config.json"), image.squashfs

    def parts(self, name: str) -> Parts:
        """Manifest, configuration and layers of the image that ``get`` finds. Raises NotFound, Unsupported."""
        image = self.get(name)
        if not image.manifest:
            raise Unsupported(
                f"the image {image.name or image.digest[:19]} came with a snapshot: only its disk is here, no layers",
                hint="Pull, load or import the image itself.",
            )
        return parts.load(self._blobs, image.manifest)

    def list(self) -> Listing:
        """Every image once for each of its names (once with an empty name where it has none), newest first.

        A damaged one is listed too, without its configuration, so that it can be seen and removed.
        """
        found = []
        for digest, record in sorted(self._read().images.items(), key=lambda item: (-item[1].created, item[0])):
            for name in record.names or [""]:
                try:
                    found.append(self._image(digest, name, record))
                except ProtocolError:
                    found.append(self._of(digest, name, record, ImageConfig()))
        return found

    def tag(self, source: str, name: str) -> Image:
        """Give the image that is found as ``get`` finds it one more name, which belongs to no other from now on.

        Raises NotFound, InvalidValue.
        """
        name = full_name(name)
        with self._changing() as index:
            digest, found = self._find(index, source)
            kept = index.images[digest].of(found)
            for other, record in index.images.items():
                index.images[other] = record.without([name])
            record = index.images[digest] = index.images[digest].named([name], kept)
        return self._image(digest, name, record)

    def with_manifest(self, manifest: str, name: str, pulled: str) -> Image | None:
        """The image that has this manifest, which is called ``name`` from now on."""
        kept = Kept(manifest=manifest, pulled=pulled)
        with self._changing() as index:
            for digest, record in index.images.items():
                if manifest in {one.manifest for one in record.kept.values()}:
                    for other, theirs in index.images.items():
                        index.images[other] = theirs.without([name]) if other != digest else theirs
                    is_called_so = name in record.names
                    index.images[digest] = record.called(name, kept) if is_called_so else record.named([name], kept)
                    return self._image(digest, name, index.images[digest])
        return None

    def pushed(self, name: str, digest: str) -> None:
        """A registry has the image of that name under this digest."""
        with self._changing() as index:
            for other, record in index.images.items():
                if name in record.names and (kept := record.of(name)) is not None:
                    index.images[other] = record.called(name, msgspec.structs.replace(kept, pulled=digest))

    def remove(self, name: str) -> Names:
        """Take a name away; with its last name, or by digest, the image goes too. Returns what is gone.

        Whether a sandbox still needs it is the caller's to know. Raises NotFound; Conflict for a digest with several
        names.
        """
        with self._changing() as index:
            digest, found = self._find(index, name)
            record = index.images[digest]
            if not found and len(record.names) > 1:
                raise Conflict(f"{name} has several names: {', '.join(record.names)}", hint="Remove it by its names.")
            left = [each for each in record.names if found and each != found]
            gone = [each for each in record.names if each not in left]
            if left:
                index.images[digest] = record.without(gone)
            else:
                del index.images[digest]
                gone.append(f"sha256:{digest}")
        if not left:
            self.sweep()
        return gone

    def sweep(self, *, every: bool = False) -> None:
        """Remove what killed makers left; with ``every`` also what their next try would go on with."""
        with self._changing() as index:
            for path in self._folder.iterdir():
                if (path.name.startswith("new-") and not _is_held(path)) or (
                    len(path.name) == 64 and path.name not in index.images
                ):
                    _remove(path)
            self._blobs.sweep(self._needed(index.images.values()), every=every)

    def holding_blobs(self) -> AbstractContextManager[None]:
        """No blob of any image goes meanwhile, also where its image is removed."""
        return self._blobs.making()

    def blob_files(self, digest: str) -> Paths:
        """The files that an image is kept in beside its disk; none where there is no such image."""
        record = self._read().images.get(digest.removeprefix("sha256:"))
        needed = self._needed([record] if record else [])
        return [path for one in needed if (path := self._blobs.find(one)) is not None]

    def incoming_files(self) -> Paths:
        """What came for images that are not whole yet."""
        return self._blobs.incoming()

    def _needed(self, records: Iterable[Record]) -> set[str]:
        """The digests of their blobs."""
        found: set[str] = set()
        for manifest in {kept.manifest for record in records for kept in record.kept.values()}:
            try:
                found.update(parts.needed(self._blobs, manifest))
            except PerdureError:
                found.add(manifest)  # damaged: its image runs, but cannot be sent on
        return found

    def _publish(self, made: Iterable[tuple[Path, Sequence[str], Kept | None]]) -> Listing:
        """Move finished images into place and list them, all at once."""
        published = []
        with self._changing() as index:
            for folder, names, kept in made:
                if kept is not None:
                    self._blobs.settle(parts.needed(self._blobs, kept.manifest))
                digest = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
                record = index.images.get(digest)
                if record is None:
                    place = self._folder / digest
                    shutil.rmtree(place, ignore_errors=True)  # a killed maker's, never listed
                    place.mkdir(mode=0o700)
                    for part in ("image.squashfs", "config.json"):
                        (folder / part).rename(place / part)
                    durable.sync(place)
                    size_bytes = (place / "image.squashfs").stat().st_size
                    record = Record(created=time.time(), size_bytes=size_bytes)
                for other, theirs in index.images.items():  # a name belongs to one image
                    index.images[other] = theirs.without(names)
                index.images[digest] = index.images.get(digest, record).named(names, kept)
                published += [(digest, name) for name in names or [""]]
            records = index.images
        return [self._image(digest, name, records[digest]) for digest, name in published]

    def _image(self, digest: str, name: str, record: Record) -> Image:
        folder = self._folder / digest
        try:
            document = msgspec.json.decode((folder / "config.json").read_bytes(), type=Document)
            size_bytes = (folder / "image.squashfs").stat().st_size
        except (FileNotFoundError, msgspec.DecodeError) as error:
            raise ProtocolError(f"the image {name or digest[:12]} is damaged: {error}", hint=AGAIN) from None
        if size_bytes != record.size_bytes:
            raise ProtocolError(f"the disk of the image {name or digest[:12]} has lost bytes", hint=AGAIN)
        return self._of(digest, name, record, document.config)

    def _of(self, digest: str, name: str, record: Record, config: ImageConfig) -> Image:
        squashfs = self._folder / digest / "image.squashfs"
        kept = record.of(name)
        manifest, pulled = (kept.manifest, kept.pulled) if kept else ("", "")
        return Image(name, f"sha256:{digest}", squashfs, record.size_bytes, record.created, config, manifest, pulled)

    @staticmethod
    def _find(index: Index, wanted: str) -> tuple[str, str]:
        """(digest, name) of what ``get`` is asked for; the name is empty when it was asked for by digest."""
        try:
            name = known_name(wanted)
        except PerdureError:
            name = ""
        for digest, record in index.images.items():
            if name in record.names:
                return digest, name
        for digest, record in index.images.items() if "@" in name else ():
            for known, kept in record.kept.items():
                if f"{known.rpartition(':')[0]}@{kept.pulled}" == name:  # it was pulled by its tag
                    return digest, known
        if match := _DIGEST.fullmatch(wanted):
            found = [digest for digest in index.images if digest.startswith(match[1])]
            if len(found) > 1:
                raise Conflict(f"{len(found)} images have digests that start with {wanted}", hint="Give more digits.")
            if found:
                return found[0], ""
        raise NotFound(
            f"no image {wanted!r} on this node",
            hint="See fcrun images. Bring one with fcrun pull NAME, fcrun import TAR NAME or fcrun load -i ARCHIVE.",
            image=wanted,
        )

    def _read(self) -> Index:
        try:
            data = (self._folder / "index.json").read_bytes()
        except FileNotFoundError:
            return Index()
        try:
            index = msgspec.json.decode(data, type=Index)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"{self._folder / 'index.json'} is damaged: {error}", hint=AGAIN) from None
        if index.version != FORMAT:
            raise ProtocolError(
                f"{self._folder / 'index.json'} has version {index.version}, this program knows {FORMAT}",
                hint="Use the newer perdure that wrote it.",
            )
        return index

    @contextmanager
    def _changing(self) -> Iterator[Index]:
        """The index, alone with it; written back when the block ends well."""
        new = self._folder / "index.json.new"
        with image_space_checked(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self._folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                index = self._read()
                before = msgspec.json.encode(index)
                yield index
                if msgspec.json.encode(index) != before:
                    try:
                        write(new, msgspec.json.format(msgspec.json.encode(index, order="sorted")))
                        new.rename(self._folder / "index.json")
                        durable.sync(self._folder)
                    except OSError as error:
                        raise disk_error(error, self._folder) from error
                    finally:
                        new.unlink(missing_ok=True)

    @contextmanager
    def _new(self) -> Iterator[Path]:
        """A folder to make an image in, gone afterwards. What killed makers left is swept first."""
        self.sweep()
        with self._changing():  # so that no sweep sees the folder before it is held
            folder = Path(tempfile.mkdtemp(prefix="new-", dir=self._folder))
            try:
                lock = (folder / "lock").open("w")
            except OSError:
                folder.rmdir()
                raise
            fcntl.flock(lock, fcntl.LOCK_EX)
        with lock:
            try:
                with self._blobs.making():
                    yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(PerdureError, OSError):  # whoever comes next does it
                    self.sweep()


def _remove(folder: Path) -> None:
    """All of it, also where a packer that outlives its killed maker begins its file in this moment."""
    for _ in range(REMOVE_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return


def _is_held(folder: Path) -> bool:
    """Whether a living maker has this folder."""
    try:
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
