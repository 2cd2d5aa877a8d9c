"""Image archives: what ``docker save`` and ``podman save`` write, and OCI image layouts in a tar.

One file, three layouts: ``manifest.json`` with ``*/layer.tar`` (docker before 25; layers may be links to each other);
``manifest.json`` with ``blobs/sha256/*`` beside an OCI layout (docker from 25); an OCI layout alone (skopeo, buildah).
``manifest.json`` wins where it is there: it alone carries names. Blobs are sections of the archive: nothing is copied.
"""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from perdure.errors import ImageInvalid
from perdure.execution.images.bytestream import Section
from perdure.execution.images.config import from_oci
from perdure.execution.images.documents import (
    DOCUMENT_MAX,
    FOREIGN_LAYERS,
    INDEXES,
    LAYERS,
    NESTING_MAX,
    Descriptor,
    Index,
    Manifest,
    decoded,
    diff_ids,
    hex_of,
)
from perdure.execution.images.image import ImageConfig
from perdure.execution.images.layers import Layer, oci_architecture
from perdure.execution.images.tarmembers import members

_HINT = "Save the image again: docker save IMAGE -o FILE, or skopeo copy … oci-archive:FILE."
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


class _Saved(msgspec.Struct, rename="pascal"):
    """One image of ``manifest.json``."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


@dataclass(frozen=True)
class PackedImage:
    """One image of an archive: its layers, lowest first, and its configuration.

    ``document`` and ``manifest`` are the bytes of both as they stand there; ``manifest`` is empty where there is none.
    """

    names: tuple[str, ...]
    layers: tuple[Layer, ...]
    config: ImageConfig
    document: bytes
    manifest: bytes = b""


class ImageArchive:
    """An uncompressed image archive. Raises ImageInvalid for whatever is missing, malformed or not as promised."""

    def __init__(self, section: Section) -> None:
        self._section = section
        self._files: dict[str, Section] = {}
        self._links: dict[str, str] = {}
        for member in members(section.open(), section.name):
            header = member.header
            path = posixpath.normpath(header.name.lstrip("/"))
            if header.isreg() and header.sparse is None:
                self._files[path] = section.within(header.offset_data, header.size, path)
                self._links.pop(path, None)
            elif header.issym():
                self._links[path] = posixpath.normpath(posixpath.join(posixpath.dirname(path), header.linkname))
            elif header.islnk():
                self._links[path] = posixpath.normpath(header.linkname.lstrip("/"))

    def images(self) -> list[PackedImage]:
        """Every image in it that this machine can run; at least one."""
        if self._has("manifest.json"):
            saved = self._document(self._file("manifest.json"), list[_Saved])
            found = [self._saved(image) for image in saved]
        elif self._has("index.json"):
            found = [self._manifest(descriptor) for descriptor in self._choose("index.json", self._file("index.json"))]
        elif self._has("repositories"):
            raise ImageInvalid(f"{self._section.name} was saved by docker before 1.10", hint=_HINT)
        else:
            raise ImageInvalid(
                f"{self._section.name} has neither manifest.json nor index.json: it is no image archive",
                hint="A root file system in a tar is imported: fcrun import FILE NAME",
            )
        if not found:
            raise ImageInvalid(f"{self._section.name} has no image in it", hint=_HINT)
        return found

    def _has(self, path: str) -> bool:
        return path in self._files or path in self._links

    def _file(self, path: str) -> Section:
        """The file at a path, through links inside the archive."""
        at = posixpath.normpath(path)
        for _ in range(10):
            if at in self._files:
                return self._files[at]
            if at not in self._links:
                break
            at = self._links[at]
        raise ImageInvalid(f"{self._section.name}: {path} is missing", hint=_HINT)

    def _document(self, section: Section, kind: Any) -> Any:
        return self._decode(self._bytes(section), kind, section.name)

    def _bytes(self, section: Section) -> bytes:
        if section.size_bytes > DOCUMENT_MAX:
            raise ImageInvalid(f"{section.name}: {section.size_bytes} bytes are too many for a document", hint=_HINT)
        return section.read_at(0, section.size_bytes)

    def _decode(self, data: bytes, kind: Any, name: str) -> Any:
        return decoded(data, kind, f"{self._section.name}: {name}", _HINT)

    def _saved(self, saved: _Saved) -> PackedImage:
        if (described := self._described(saved)) is not None:
            return dataclasses.replace(described, names=tuple(saved.repo_tags or ()))
        document = self._bytes(self._file(saved.config))
        config = self._decode(document, dict[str, Any], saved.config)
        self._check_platform(config, saved.config)
        layers = [Layer(self._file(path)) for path in saved.layers]
        return PackedImage(
            tuple(saved.repo_tags or ()),
            self._promised(layers, config, saved.config),
            from_oci(config, saved.config),
            document,
        )

    def _described(self, saved: _Saved) -> PackedImage | None:
        """The same image as the layout beside ``manifest.json`` has it: with its manifest, so that its digest stays."""
        if not self._has("index.json"):
            return None
        try:
            for descriptor in self._choose("index.json", self._file("index.json")):
                manifest: Manifest = self._verified(descriptor, Manifest)
                if saved.config == f"blobs/sha256/{hex_of(manifest.config.digest, saved.config)}":
                    return self._manifest(descriptor)
        except ImageInvalid:
            pass  # docker reads ``manifest.json`` alone, and so it must do
        return None

    def _blob(self, descriptor: Descriptor) -> Section:
        encoded = hex_of(descriptor.digest, self._section.name)
        section = self._file(f"blobs/sha256/{encoded}")
        if section.size_bytes != descriptor.size:
            message = f"{section.name} has {section.size_bytes} bytes, but its descriptor promises {descriptor.size}"
            raise ImageInvalid(f"{self._section.name}: {message}", hint=_HINT)
        return section

    def _verified(self, descriptor: Descriptor, kind: Any) -> Any:
        """A JSON blob, checked against its digest."""
        return self._decode(self._checked(descriptor), kind, descriptor.digest)

    def _checked(self, descriptor: Descriptor) -> bytes:
        section = self._blob(descriptor)
        data = self._bytes(section)
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if found != descriptor.digest:
            raise ImageInvalid(f"{self._section.name}: {section.name} has the digest {found}", hint=_HINT)
        return data

    def _choose(self, name: str, section: Section) -> list[Descriptor]:
        """The manifests of an index that are for this machine; indexes in it are opened."""
        index = self._document(section, Index)
        chosen = []
        passed_over: set[str] = set()
        for descriptor, outer in self._leaves(index, {}, 0):
            platform = descriptor.platform
            if platform is not None and platform.os == "unknown":
                continue  # an attestation of BuildKit, no image
            if platform is not None and (platform.os, platform.architecture) != ("linux", oci_architecture()):
                passed_over.add(f"{platform.os}/{platform.architecture}")
                continue
            descriptor.annotations = {**outer, **descriptor.annotations}
            chosen.append(descriptor)
        if not chosen and passed_over:
            raise other_platform(f"{self._section.name}: {name}", ", ".join(sorted(passed_over)))
        return chosen

    def _leaves(self, index: Index, outer: dict[str, str], depth: int) -> Iterator[tuple[Descriptor, dict[str, str]]]:
        if depth > NESTING_MAX:
            raise ImageInvalid(f"{self._section.name}: indexes in indexes without end", hint=_HINT)
        for descriptor in index.manifests:
            if descriptor.media_type in INDEXES:
                annotations = {**outer, **descriptor.annotations}
                yield from self._leaves(self._verified(descriptor, Index), annotations, depth + 1)
            else:
                yield descriptor, outer

    def _manifest(self, descriptor: Descriptor) -> PackedImage:
        data = self._checked(descriptor)
        manifest: Manifest = self._decode(data, Manifest, descriptor.digest)
        document = self._checked(manifest.config)
        config = self._decode(document, dict[str, Any], manifest.config.digest)
        self._check_platform(config, manifest.config.digest)
        layers = []
        for layer in manifest.layers:
            if layer.media_type not in LAYERS + FOREIGN_LAYERS:
                raise ImageInvalid(
                    f"{self._section.name}: the layer {layer.digest} is of the unknown kind {layer.media_type!r}",
                    hint="Layers are tars, plain or compressed with gzip or zstd; encrypted ones cannot be read.",
                )
            layers.append(Layer(self._blob(layer), blob_digest=layer.digest))
        names = [descriptor.annotations[key] for key in _NAME_ANNOTATIONS if descriptor.annotations.get(key)]
        return PackedImage(
            tuple(names[:1]),
            self._promised(layers, config, manifest.config.digest),
            from_oci(config, descriptor.digest),
            document,
            data,
        )

    def _promised(self, layers: Sequence[Layer], config: dict[str, Any], name: str) -> tuple[Layer, ...]:
        """The layers with the digests of their tars, which the configuration lists."""
        ids = diff_ids(config, len(layers), f"{self._section.name}: {name}", _HINT)
        return tuple(Layer(layer.section, layer.blob_digest, each) for layer, each in zip(layers, ids, strict=True))

    def _check_platform(self, config: dict[str, Any], name: str) -> None:
        system, architecture = config.get("os", "linux"), config.get("architecture", oci_architecture())
        if (system, architecture) != ("linux", oci_architecture()):
            raise other_platform(f"{self._section.name}: {name}", f"{system}/{architecture}")


def other_platform(where: str, found: str) -> ImageInvalid:
    """What is said of an image for another kind of machine."""
    return ImageInvalid(
        f"{where} is for {found}, but this machine is linux/{oci_architecture()}",
        hint=f"Get the image for this machine: docker pull --platform linux/{oci_architecture()} IMAGE, then save it.",
    )
