"""Images from registries: the manifest that is for this machine, its blobs, each verified, then the disk.

What is here already is not fetched again, and what came half, also of a pull that was killed, is gone on with.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from perdure.errors import ImageInvalid, NoSpace, Unsupported
from perdure.execution.images.archive import other_platform
from perdure.execution.images.blobs import Blobs
from perdure.execution.images.diskerror import image_space_checked
from perdure.execution.images.documents import (
    CONFIGS,
    FOREIGN_LAYERS,
    INDEXES,
    LAYERS,
    MANIFESTS,
    NESTING_MAX,
    Index,
    Kind,
    Manifest,
    Platform,
    decoded,
    diff_ids,
    digest_of,
    hex_of,
)
from perdure.execution.images.documents import Descriptor as Named
from perdure.execution.images.layers import oci_architecture
from perdure.execution.images.library import ImageLibrary
from perdure.execution.registry.download import READS, Download
from perdure.execution.registry.repository import Repository
from perdure.formats.manifest import Descriptor
from perdure.formats.references import Reference
from perdure.host.progress import Progress
from perdure.reports import ImagePulled, LayerMoved

MANIFEST_MAX = 4 << 20  # bytes; the distribution specification asks registries to take as much
ACCEPT = ", ".join(MANIFESTS + INDEXES)
_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}
_CHUNK = 1 << 20


def pull(
    library: ImageLibrary, repository: Repository, reference: Reference, *, platform: str = "", progress: Progress
) -> ImagePulled:
    """Bring the image that ``reference`` names; it has that name here then.

    platform: ``linux/ARCH``, which must be this machine's. Raises InvalidValue, Unsupported (an image, or a platform,
    that cannot run here), ImageInvalid (what the registry gives is not what it promises), NotFound, NoSpace, NoRights,
    Unavailable.
    """
    wanted = _wanted(platform)
    pulled, manifest_bytes = _manifest(repository, reference, wanted)
    manifest_digest = digest_of(manifest_bytes)
    where = f"{repository.url}: manifest {manifest_digest}"
    manifest: Manifest = decoded(manifest_bytes, Manifest, where)
    _check(manifest, where)
    told: dict[str, str] = {}
    with library.holding_blobs():
        image = library.with_manifest(manifest_digest, reference.name, pulled)
        is_new = image is None
        if image is None:
            try:
                for is_second in (False, True):
                    with image_space_checked(library.blobs.folder / "incoming"):
                        library.blobs.add(manifest_bytes)
                        _fetch(library.blobs, repository, manifest, progress, told)
                    try:
                        image = library.from_manifest(manifest_digest, reference.name, pulled, progress=progress)
                        break
                    except ImageInvalid:  # a blob that was here before may have been damaged since
                        if is_second or not library.blobs.drop_damaged(_digests(manifest_digest, manifest)):
                            raise
            except NoSpace:
                library.blobs.forget(_digests(manifest_digest, manifest))
                raise
    assert image is not None
    return ImagePulled(
        name=reference.name,
        place=reference.place,
        digest=pulled,
        image=image.digest,
        is_new=is_new,
        layers=[LayerMoved(layer.digest, told.get(layer.digest, "there")) for layer in manifest.layers],
    )


def _digests(own: str, manifest: Manifest) -> list[str]:
    return [own, manifest.config.digest, *(layer.digest for layer in manifest.layers)]


def _wanted(platform: str) -> Platform:
    """What to look for in an index. Raises InvalidValue, Unsupported for what cannot run here."""
    here = Platform(os="linux", architecture=oci_architecture())
    if not platform:
        return here
    parts = platform.lower().split("/")
    if len(parts) == 1:
        parts = [parts[0], here.architecture] if parts[0] == "linux" else ["linux", parts[0]]
    asked = Platform(os=parts[0], architecture=_ARCHITECTURES.get(parts[1], parts[1]), variant="/".join(parts[2:]))
    if (asked.os, asked.architecture) != (here.os, here.architecture):
        raise Unsupported(
            f"--platform {platform}: this node runs {here}", hint=f"Use a node of that kind, or --platform {here}."
        )
    return asked


def _manifest(repository: Repository, reference: Reference, wanted: Platform) -> tuple[str, bytes]:
    """(digest of what the name stands for, the image's manifest), both verified where a digest was given."""
    name = reference.digest or reference.tag
    data, said = repository.document(name, ACCEPT, MANIFEST_MAX)
    digest = digest_of(data)
    if reference.digest and digest != reference.digest:
        raise ImageInvalid(
            f"{repository.url}: asked for {reference.digest}, the registry gave {digest}", hint=_REGISTRY
        )
    outer = digest
    for _ in range(NESTING_MAX + 1):
        where = f"{repository.url}: {digest}"
        kind: Kind = decoded(data, Kind, where, _REGISTRY)
        media_type = kind.media_type or said
        if media_type in MANIFESTS:
            return outer, data
        if media_type not in INDEXES:
            raise _unknown(where, media_type, kind.schema_version)
        chosen = _chosen(decoded(data, Index, where, _REGISTRY), wanted, f"{repository.url}:{name}")
        data, said = repository.document(chosen.digest, ACCEPT, MANIFEST_MAX)
        digest = digest_of(data)
        if digest != chosen.digest:
            raise ImageInvalid(f"{where} names {chosen.digest}, the registry gave {digest}", hint=_REGISTRY)
    raise ImageInvalid(f"{repository.url}: indexes in indexes without end", hint=_REGISTRY)


def _chosen(index: Index, wanted: Platform, where: str) -> Named:
    """The manifest, or the index, for this machine."""
    passed_over: list[str] = []
    found: list[Named] = []
    for named in index.manifests:
        hex_of(named.digest, where)
        platform = named.platform
        if platform is None or (platform.os, platform.architecture) == (wanted.os, wanted.architecture):
            found.append(named)
        elif platform.os != "unknown":  # that is an attestation of BuildKit, no image
            passed_over.append(str(platform))
    plain = ("", wanted.variant or ("v8" if wanted.architecture == "arm64" else ""))
    found.sort(key=lambda one: one.platform is None or one.platform.variant not in plain)
    if wanted.variant:
        found = [one for one in found if one.platform is not None and one.platform.variant == wanted.variant]
    if not found:
        raise ImageInvalid(
            f"no matching manifest for {wanted} in the manifest list entries of {where}",
            hint=f"It has {', '.join(passed_over) or 'none at all'}." if passed_over or not found else "",
        )
    return found[0]


def _unknown(where: str, media_type: str, schema_version: int) -> ImageInvalid:
    if schema_version == 1 or "manifest.v1" in media_type:
        return ImageInvalid(
            f"{where} is of docker's schema 1, which nobody writes since 2016",
            hint="Push the image again with a newer docker, podman or skopeo.",
        )
    return ImageInvalid(f"{where} is no image: it is of the unknown kind {media_type!r}", hint=_REGISTRY)


def _check(manifest: Manifest, where: str) -> None:
    """Raises ImageInvalid for what is no image, or has what cannot be brought."""
    if manifest.config.media_type not in CONFIGS:
        hint = "Bring a snapshot with fcrun snapshot pull." if "perdure" in manifest.config.media_type else _REGISTRY
        raise ImageInvalid(f"{where} is no image: its configuration is of {manifest.config.media_type!r}", hint=hint)
    for blob in (manifest.config, *manifest.layers):
        hex_of(blob.digest, where)
        if blob.size < 0:
            raise ImageInvalid(f"{where}: blob {blob.digest} of {blob.size} bytes", hint=_REGISTRY)
    if manifest.config.size > MANIFEST_MAX:
        raise ImageInvalid(f"{where}: a configuration of {manifest.config.size} bytes", hint=_REGISTRY)
    for layer in manifest.layers:
        if layer.media_type in FOREIGN_LAYERS or layer.urls:
            raise ImageInvalid(
                f"{where}: the layer {layer.digest} is a foreign one: the registry does not have its bytes",
                hint="Such images are Windows'. Copy it with its layers into a registry of your own first.",
            )
        if layer.media_type not in LAYERS:
            raise ImageInvalid(
                f"{where}: the layer {layer.digest} is of the unknown kind {layer.media_type!r}",
                hint="Layers are tars, plain or compressed with gzip or zstd; encrypted ones cannot be read.",
            )


def _fetch(blobs: Blobs, repository: Repository, manifest: Manifest, progress: Progress, told: dict[str, str]) -> None:
    """All blobs of a manifest, the configuration first: it says whether the rest is worth the way."""
    with _BlobDownload(repository, progress) as download:
        config = _descriptor(manifest.config)
        layers = list({layer.digest: _descriptor(layer) for layer in manifest.layers}.values())
        _check_room(blobs, [config, *layers])
        download.expect([config, *layers])
        download.into_blobs(blobs, [config], told)
        _check_config(blobs.read(config.digest), len(manifest.layers), f"{repository.url}: {config.digest}")
        download.into_blobs(blobs, layers, told)


def _descriptor(named: Named) -> Descriptor:
    return Descriptor(media_type=named.media_type, digest=named.digest, size=named.size)


def _check_room(blobs: Blobs, descriptors: Sequence[Descriptor]) -> None:
    missing = sum(descriptor.size for descriptor in descriptors if blobs.find(descriptor.digest) is None)
    free = shutil.disk_usage(blobs.folder).free
    if missing > free:
        raise NoSpace(
            f"the image has {missing >> 20} MiB to be fetched, {free >> 20} MiB are free in {blobs.folder}",
            hint="Remove images that are not needed (fcrun images; fcrun rmi NAME), or use a larger disk.",
        )


def _check_config(data: bytes, layers: int, where: str) -> None:
    """Raises ImageInvalid unless it describes that many layers, for this machine."""
    document = decoded(data, dict[str, Any], where, _REGISTRY)
    diff_ids(document, layers, where, _REGISTRY)
    system, architecture = document.get("os", "linux"), document.get("architecture", oci_architecture())
    if (system, architecture) != ("linux", oci_architecture()):
        raise other_platform(where, f"{system}/{architecture}")


class _BlobDownload(Download):
    """Into the blobs of images, going on where an earlier one was."""

    def into_blobs(self, blobs: Blobs, descriptors: Iterable[Descriptor], told: dict[str, str]) -> None:
        """Each of them; ``told`` gets "there" or "fetched" for its digest."""
        self.all(partial(self._into_blobs, blobs, descriptor, told) for descriptor in descriptors)

    def _into_blobs(self, blobs: Blobs, descriptor: Descriptor, told: dict[str, str]) -> None:
        found = ""
        for _ in range(READS):
            with blobs.part(descriptor.digest) as coming:
                if coming is None:
                    told.setdefault(descriptor.digest, "there")
                    self.count(descriptor.size)
                    return
                file, path = coming
                if path.stat().st_size > descriptor.size:
                    file.truncate(0)
                digest = hashlib.sha256()
                begun = 0
                file.seek(0)
                while data := file.read(_CHUNK):
                    digest.update(data)
                    begun += len(data)
                self.count(begun)
                self.read(descriptor, _both(digest.update, file.write), begun)
                file.flush()
                os.fsync(file.fileno())
                found = f"sha256:{digest.hexdigest()}"
                if found == descriptor.digest:
                    blobs.arrived(path, found)
                    told[descriptor.digest] = "fetched"
                    return
                self.count(-descriptor.size)
                path.unlink()  # once more from its start
        raise self.other_bytes(descriptor, found)


def _both(one: Callable[[bytes], object], other: Callable[[bytes], object]) -> Callable[[bytes], None]:
    def take(data: bytes) -> None:
        one(data)
        other(data)

    return take


_REGISTRY = "Look after what the registry has there, or push it again."
