"""A store in one file: a tar of the folder that a push would have made (docs/formats/remote.md).

It is written from the files of a node as it leaves, and read where it lies: nothing is unpacked, nothing copied twice.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from perdure.errors import NotFound, SnapshotInvalid, Unsupported
from perdure.execution.registry.contract import INTERNAL_TAGS, RemoteStore, checked
from perdure.execution.registry.upload import Parcel
from perdure.execution.snapshots.index import Index
from perdure.formats.manifest import LIMIT_BYTES, Descriptor, check_digest

CHUNK_BYTES = 1 << 20
MEMBERS_MAX = 1 << 16
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_AGAIN = "Export the snapshot again: fcrun snapshot export SNAPSHOT -o FILE"


def write(parcels: Sequence[Parcel]) -> Iterator[bytes]:
    """The bytes of the tar, from the blobs' own files. Raises SnapshotInvalid for one that was damaged here: what was
    written by then is no archive."""
    index = Index()
    for parcel in parcels:
        index.tag(parcel.tag, parcel.descriptor)
    yield _member("oci-layout", LAYOUT)
    yield _member("index.json", msgspec.json.encode(index))
    for name in ("blobs", "blobs/sha256"):
        folder = tarfile.TarInfo(name + "/")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        yield folder.tobuf(tarfile.PAX_FORMAT)
    seen = set()
    for parcel in parcels:
        for descriptor, path in parcel.blobs:
            if descriptor.digest not in seen:
                seen.add(descriptor.digest)
                yield from _blob(descriptor, path)
        if parcel.descriptor.digest not in seen:
            seen.add(parcel.descriptor.digest)
            yield _member(f"blobs/sha256/{check_digest(parcel.descriptor.digest)}", parcel.manifest)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


def _member(name: str, data: bytes) -> bytes:
    return _header(name, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _blob(descriptor: Descriptor, path: Path) -> Iterator[bytes]:
    found, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        yield _header(f"blobs/sha256/{check_digest(descriptor.digest)}", descriptor.size)
        while data := file.read(min(CHUNK_BYTES, descriptor.size - size)):
            found.update(data)
            size += len(data)
            yield data
    if size != descriptor.size or f"sha256:{found.hexdigest()}" != descriptor.digest:
        raise SnapshotInvalid(
            f"{path} ({descriptor.media_type}) does not have the digest {descriptor.digest}: it was damaged or changed"
        )
    if padding := -size % tarfile.BLOCKSIZE:
        yield bytes(padding)


class ArchiveStore:
    """Such a file, for reading. Raises SnapshotInvalid where it is none, or is cut short."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._members = self._listed()
            self._index = self._read_index()
        except BaseException:
            os.close(self._file)
            raise

    @property
    def url(self) -> str:
        return self._path.name

    def _listed(self) -> dict[str, tuple[int, int]]:
        """(offset, size) of each member, by name."""
        found: dict[str, tuple[int, int]] = {}
        size = os.fstat(self._file).st_size
        try:
            with (
                os.fdopen(os.dup(self._file), "rb") as file,
                tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar,
            ):
                while (member := tar.next()) is not None:
                    name = member.name.removeprefix("./").rstrip("/")
                    if member.isdir() and name in ("", ".", "blobs", "blobs/sha256"):
                        continue
                    known = name in ("oci-layout", "index.json") or _BLOB.fullmatch(name)
                    if not known or not member.isreg() or member.issparse() or name in found:
                        raise self._invalid(f"it has {member.name!r}, which no exported snapshot has")
                    if member.offset_data + member.size > size:
                        raise self._invalid("it is cut short")
                    if len(found) == MEMBERS_MAX:
                        raise self._invalid(f"it has more than {MEMBERS_MAX} members")
                    found[name] = (member.offset_data, member.size)
                    tar.members.clear()  # type: ignore[attr-defined]  # or it keeps every header
                end = tar.offset
        except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
            raise self._invalid(f"it is no tar, or a damaged one ({error})") from None
        if not found.keys() & {"oci-layout", "index.json"}:
            raise self._invalid("it is no OCI layout")
        if os.pread(self._file, tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
            raise self._invalid("it is cut short: its end mark is missing")
        return found

    def _read_index(self) -> Index:
        offset, size = self._members.get("index.json", (0, 0))
        if not 0 < size <= LIMIT_BYTES:
            raise self._invalid("it has no index.json")
        try:
            return msgspec.json.decode(os.pread(self._file, size, offset), type=Index)
        except msgspec.MsgspecError as error:
            raise self._invalid(f"its index.json does not read: {error}") from None

    def _invalid(self, why: str) -> SnapshotInvalid:
        return SnapshotInvalid(f"{self.url} is no exported snapshot: {why}", hint=_AGAIN)

    def has(self, descriptor: Descriptor) -> bool:
        return self._members.get(_name(descriptor.digest), (0, -1))[1] == descriptor.size

    def read(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        place, size = self._place(descriptor.digest)
        data = os.pread(self._file, max(0, min(length, size - offset)), place + offset)
        if len(data) != length:
            raise SnapshotInvalid(f"{self.url}: blob {descriptor.digest} has {size} of {descriptor.size} bytes")
        return data

    def _place(self, digest: str) -> tuple[int, int]:
        try:
            return self._members[_name(digest)]
        except KeyError:
            raise NotFound(f"{self.url} has no blob {digest}") from None

    def put(self, descriptor: Descriptor, source: Path) -> None:
        raise Unsupported(f"{self.url} is only read")

    def tag(self, name: str, manifest: bytes, descriptor: Descriptor) -> None:
        raise Unsupported(f"{self.url} is only read")

    def manifest(self, name: str) -> bytes:
        digest = name if name.startswith("sha256:") else self._index.tags().get(name, "")
        if not digest:
            raise NotFound(f"{self.url} has no tag {name}")
        place, size = self._place(digest)
        if size > LIMIT_BYTES:
            raise SnapshotInvalid(f"{self.url}: manifest {name} has more than {LIMIT_BYTES} bytes")
        return checked(digest, os.pread(self._file, size, place))

    def tags(self) -> list[str]:
        return sorted(self._index.tags())

    def close(self) -> None:
        os.close(self._file)


def tag_of(remote: RemoteStore) -> str:
    """The tag of the one snapshot in a store. Raises SnapshotInvalid where there is none, or more than one."""
    tags = [tag for tag in remote.tags() if not tag.startswith(INTERNAL_TAGS)]
    if len(tags) != 1:
        hint = "An image is loaded with: fcrun load -i FILE" if not tags else _AGAIN
        raise SnapshotInvalid(f"{remote.url} has {len(tags) or 'no'} snapshot{'s' * (len(tags) > 1)}", hint=hint)
    return tags[0]


def _name(digest: str) -> str:
    return f"blobs/sha256/{check_digest(digest)}"
