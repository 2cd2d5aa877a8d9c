"""Images as one archive, which docker, podman, skopeo and ``fcrun load`` read: an OCI layout and ``manifest.json``.

It is what ``docker save`` writes since version 25. Layers and documents are the very blobs that are kept: digests stay.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from perdure.errors import ImageInvalid
from perdure.execution.images.bytestream import CHUNK
from perdure.execution.images.documents import hex_of
from perdure.execution.images.library import ImageLibrary
from perdure.execution.images.parts import Parts

_BLOBS = "blobs/sha256"


@dataclass
class Wanted:
    """One image to save, and the names that it was asked for by (none: it was asked for by digest)."""

    parts: Parts
    names: list[str] = field(default_factory=list)


def chosen(library: ImageLibrary, names: Sequence[str]) -> list[Wanted]:
    """What is to be saved. Raises NotFound, Conflict, Unsupported before anything is written."""
    found: dict[str, Wanted] = {}
    for name in names:
        image, parts = library.get(name), library.parts(name)
        wanted = found.setdefault(parts.digest, Wanted(parts))
        if image.name and "@" not in image.name and image.name not in wanted.names:
            wanted.names.append(image.name)
    return list(found.values())


def archive(library: ImageLibrary, images: Sequence[Wanted]) -> Generator[bytes, None, None]:
    """The bytes of the tar. Equal images give equal bytes. Raises ImageInvalid for a blob that is damaged."""
    with library.holding_blobs():
        documents: dict[str, bytes] = {}
        layers: dict[str, tuple[Path, int]] = {}
        for image in images:
            documents |= {image.parts.digest: image.parts.manifest, image.parts.config_digest: image.parts.config}
            layers |= {layer.digest: (layer.path, layer.size_bytes) for layer in image.parts.layers}
        yield _folder("blobs") + _folder(_BLOBS)
        for digest in sorted({*documents, *layers}):
            name = f"{_BLOBS}/{hex_of(digest, 'an image')}"
            if digest in documents:
                yield _member(name, documents[digest])
            else:
                yield from _blob(name, digest, *layers[digest])
        yield _member("index.json", msgspec.json.encode(_index(images)))
        yield _member("manifest.json", msgspec.json.encode([_listed(image) for image in images]))
        yield _member("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        yield bytes(2 * tarfile.BLOCKSIZE)


def _index(images: Sequence[Wanted]) -> dict[str, Any]:
    described: list[dict[str, Any]] = []
    for image in images:
        document = image.parts.document
        descriptor = {
            "mediaType": image.parts.media_type,
            "digest": image.parts.digest,
            "size": len(image.parts.manifest),
            "platform": {key: document[key] for key in ("architecture", "os", "variant") if document.get(key)},
        }
        for name in image.names:
            full = _canonical(name)
            annotations = {
                "io.containerd.image.name": full,
                "org.opencontainers.image.ref.name": full.rpartition(":")[2],
            }
            described.append({**descriptor, "annotations": annotations})
        if not image.names:
            described.append(descriptor)
    return {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": described}


def _canonical(name: str) -> str:
    """With the host and the path that docker leaves out."""
    host, slash, _ = name.partition("/")
    if slash and (host == "localhost" or {".", ":"} & set(host)):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def _listed(image: Wanted) -> dict[str, Any]:
    """As ``manifest.json`` has it."""
    return {
        "Config": f"{_BLOBS}/{hex_of(image.parts.config_digest, 'an image')}",
        "RepoTags": image.names or None,
        "Layers": [f"{_BLOBS}/{hex_of(layer.digest, 'an image')}" for layer in image.parts.layers],
    }


def _blob(name: str, digest: str, path: Path, size_bytes: int) -> Iterator[bytes]:
    yield _header(name, size_bytes)
    found, left = hashlib.sha256(), size_bytes
    with path.open("rb") as file:
        while data := file.read(min(CHUNK, left)):
            found.update(data)
            left -= len(data)
            yield data
    if left or f"sha256:{found.hexdigest()}" != digest:
        raise ImageInvalid(f"the layer {digest} is damaged here", hint="Pull or load its image again.")
    yield bytes(-size_bytes % tarfile.BLOCKSIZE)


def _member(name: str, data: bytes) -> bytes:
    return _header(name, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _folder(name: str) -> bytes:
    header = tarfile.TarInfo(name)
    header.type, header.mode = tarfile.DIRTYPE, 0o755
    return header.tobuf(tarfile.PAX_FORMAT)


def _header(name: str, size_bytes: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = size_bytes
    return header.tobuf(tarfile.PAX_FORMAT)
