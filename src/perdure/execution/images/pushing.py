"""Images to registries: blobs that are not there yet, then the manifest, with the digests that they came with."""

from __future__ import annotations

from perdure.errors import ImageInvalid, NotFound, PerdureError
from perdure.execution.images.library import ImageLibrary
from perdure.execution.registry.repository import Repository
from perdure.execution.registry.upload import Parcel, send
from perdure.formats.manifest import Descriptor
from perdure.formats.references import Reference, parse
from perdure.host.progress import Progress
from perdure.reports import ImagePushed, LayerMoved

SOURCES_MAX = 3  # repositories that are asked for one blob


def push(
    library: ImageLibrary, repository: Repository, reference: Reference, *, all_tags: bool = False, progress: Progress
) -> list[ImagePushed]:
    """Bring the image of that name, or all images of its repository, to the registry that the name says.

    Raises NotFound, Unsupported (only its disk is here), ImageInvalid (a blob here was damaged), NoRights, Unavailable.
    """
    names = _names(library, reference) if all_tags else [reference.name]
    return [_push(library, repository, parse(name), progress) for name in names]


def _names(library: ImageLibrary, reference: Reference) -> list[str]:
    found = [image.name for image in library.list() if image.name and "@" not in image.name]
    names = [name for name in found if parse(name).repository == reference.repository]
    if not names:
        raise NotFound(f"no image here has a name of {reference.repository}", hint="See fcrun images, fcrun tag.")
    return sorted(names)


def _push(library: ImageLibrary, repository: Repository, reference: Reference, progress: Progress) -> ImagePushed:
    with library.holding_blobs():
        parts = library.parts(reference.name)
        config = Descriptor(media_type=parts.config_media_type, digest=parts.config_digest, size=len(parts.config))
        layers = [
            (Descriptor(media_type=one.media_type, digest=one.digest, size=one.size_bytes), one.path)
            for one in parts.layers
        ]
        blobs = [(config, library.blobs.path(config.digest)), *layers]
        parcel = Parcel(reference.tag, parts.manifest, blobs, parts.media_type)
        sources = _sources(library, reference)
        told: dict[str, str] = {}

        def mounted(descriptor: Descriptor) -> bool:
            return any(repository.mount(descriptor, source) for source in sources.get(descriptor.digest, ()))

        def tell(descriptor: Descriptor, how: str) -> None:
            told[descriptor.digest] = how

        send(repository, [parcel], progress, elsewhere=mounted, told=tell, invalid=ImageInvalid)
    library.pushed(reference.name, parts.digest)
    return ImagePushed(
        name=reference.name,
        place=reference.place,
        tag=reference.tag,
        digest=parts.digest,
        size=len(parts.manifest),
        layers=[LayerMoved(layer.digest, told[layer.digest]) for layer, _ in layers],
    )


def _sources(library: ImageLibrary, reference: Reference) -> dict[str, list[str]]:
    """Other repositories of the same registry that had each blob, so far as is known here."""
    found: dict[str, list[str]] = {}
    for image in library.list():
        there = parse(image.name) if image.name and image.pulled else reference
        if (there.host, there.path == reference.path) != (reference.host, False):
            continue
        try:
            layers = library.parts(image.name).layers
        except PerdureError:
            continue  # it is not the one that is pushed
        for layer in layers:
            known = found.setdefault(layer.digest, [])
            if there.path not in known and len(known) < SOURCES_MAX:
                known.append(there.path)
    return found
