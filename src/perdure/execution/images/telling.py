"""What an image is and how it was made, in docker's words."""

from __future__ import annotations

import datetime
import functools
from pathlib import Path
from typing import Any

from perdure.errors import NotFound, Unsupported
from perdure.execution.images.bytestream import CHUNK, Section
from perdure.execution.images.config import to_oci
from perdure.execution.images.image import Image
from perdure.execution.images.layers import oci_architecture
from perdure.execution.images.library import ImageLibrary
from perdure.execution.images.parts import KeptLayer, Parts
from perdure.model import ImageStep


def steps(library: ImageLibrary, name: str) -> list[ImageStep]:
    """How an image was made, the newest step first. Raises NotFound, Unsupported."""
    with library.holding_blobs():
        parts = library.parts(name)
        layers = list(parts.layers)
        found = []
        for step in parts.history:
            layer = None if step.get("empty_layer") or not layers else layers.pop(0)
            found.append(
                ImageStep(
                    created=str(step.get("created", "")),
                    created_by=str(step.get("created_by", "")),
                    comment=str(step.get("comment", "")),
                    size_bytes=_tar_bytes(layer) if layer else 0,
                    layer=layer.diff_id if layer else "",
                )
            )
        # docker's builders tell of every layer; what others leave out is there all the same
        found += [ImageStep(size_bytes=_tar_bytes(layer), layer=layer.diff_id) for layer in layers]
        return found[::-1]


def _tar_bytes(layer: KeptLayer) -> int:
    return _decompressed_bytes(layer.path.parent, layer.path.name)


@functools.lru_cache(maxsize=4096)
def _decompressed_bytes(folder: Path, name: str) -> int:
    """Of a blob: it never changes, so it is measured once in a node's life."""
    with (folder / name).open("rb") as file:
        section = Section.whole(file, name)
        if not section.is_compressed:
            return section.size_bytes
        reader = section.open()
        while reader.read(CHUNK):
            pass
        return reader.tell()


def inspected(library: ImageLibrary, name: str) -> dict[str, Any]:
    """All that is known of an image, with docker's field names. Raises NotFound."""
    image = library.get(name)
    parts: Parts | None
    try:
        parts = library.parts(name)
    except (NotFound, Unsupported):  # the disk alone is here
        parts = None
    document = parts.document if parts else {}
    names = [other.name for other in library.list() if other.digest == image.digest and other.name]
    history = parts.history if parts else []
    found = {
        "Id": image.digest,
        "RepoTags": [each for each in names if "@" not in each],
        "RepoDigests": sorted({f"{_repository(each)}@{image.pulled}" for each in names}) if image.pulled else [],
        "Comment": str(history[-1].get("comment", "")) if history else "",
        "Created": document.get("created") or _moment(image.created),
        "Author": document.get("author", ""),
        "Config": _config(image) | {"Labels": image.config.labels or None},
        "Architecture": document.get("architecture", oci_architecture()),
        "Variant": document.get("variant", ""),
        "Os": document.get("os", "linux"),
        "Size": image.size_bytes,
        "RootFS": {"Type": "layers", "Layers": [layer.diff_id for layer in parts.layers] if parts else []},
        "Metadata": {"LastTagTime": _moment(image.created)},
        "Disk": str(image.squashfs),
    }
    if parts is not None:
        found["Descriptor"] = {"mediaType": parts.media_type, "digest": parts.digest, "size": len(parts.manifest)}
        found["ConfigDigest"] = parts.config_digest
    return found


def _config(image: Image) -> dict[str, Any]:
    """With docker's nulls for what is not set."""
    empty = {"User": "", "Env": None, "Entrypoint": None, "Cmd": None, "Volumes": None, "WorkingDir": ""}
    return empty | to_oci(image.config)


def _repository(name: str) -> str:
    return name.partition("@")[0] if "@" in name else name.rpartition(":")[0]


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat().replace("+00:00", "Z")
