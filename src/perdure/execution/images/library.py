"""How images come into a node's library: from tars, archives, packages, layers that are here, another library."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, BinaryIO

import msgspec

from perdure.errors import ImageInvalid
from perdure.execution.images import parts
from perdure.execution.images.archive import ImageArchive
from perdure.execution.images.bytestream import Section
from perdure.execution.images.config import changed, from_oci, to_oci
from perdure.execution.images.diskerror import disk_error, image_space_checked
from perdure.execution.images.image import Image, ImageConfig
from perdure.execution.images.index import FORMAT, Kept
from perdure.execution.images.layers import Layer, merge, oci_architecture
from perdure.execution.images.packages import bootstrap
from perdure.execution.images.parts import KeptLayer
from perdure.execution.images.shelf import AGAIN, Document, Listing, Shelf, write
from perdure.execution.images.source import opened
from perdure.execution.images.squashfs import pack, write_tar
from perdure.formats.references import full_name

Progress = Callable[[str, int, int], None]
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ImageLibrary(Shelf):
    """Images in a folder, safe for several threads and processes. Every method blocks: call it in a thread."""

    def import_tar(
        self, source: Path | BinaryIO, name: str, *, changes: Sequence[str] = (), progress: Progress | None = None
    ) -> Image:
        """An image from a root file system in a tar (plain or compressed); ``changes`` as of ``docker import``.

        Raises ImageInvalid for what is no root file system or plays tricks, InvalidValue for a bad name or change,
        NoSpace, Unsupported without mksquashfs.
        """
        names = [full_name(name)]
        config = changed(ImageConfig(), changes)
        with self._new() as folder, opened(source, folder) as section:
            self._make(folder, [Layer(section)], config, relative_only=True, progress=progress)
            kept = self._composed(folder, [Layer(section)], config, "import", progress)
            return self._publish([(folder, names, kept)])[0]

    def load_archive(self, source: Path | BinaryIO, *, name: str = "", progress: Progress | None = None) -> Listing:
        """The images of a ``docker save`` or OCI archive, once for each name: all of them, or none. ``name`` replaces
        the archive's own.

        Raises as ``import_tar`` does; an image for another kind of machine is an ImageInvalid.
        """
        with self._new() as folder, opened(source, folder, plain=True) as section:
            packed = ImageArchive(section).images()
            if name and len(packed) > 1:
                raise ImageInvalid(f"{section.name} has {len(packed)} images", hint="Load it without a name.")
            made = []
            for number, image in enumerate(packed):
                part = folder / str(number)
                part.mkdir()
                self._make(part, image.layers, image.config, relative_only=False, progress=progress)
                with image_space_checked(folder):
                    if image.manifest:
                        digest = parts.keep_as_is(self._blobs, image.manifest, image.document, image.layers)
                    else:
                        digest = parts.compose(self._blobs, image.layers, {}, config=image.document, progress=progress)
                names = [full_name(each) for each in ([name] if name else image.names)]
                made.append((part, names, Kept(manifest=digest)))
            return self._publish(made)

    def build_from_packages(
        self, name: str, packages: Sequence[str], *, suite: str | None = None, progress: Progress | None = None
    ) -> Image:
        """An image of Debian's essential packages and ``packages``, from this machine's own apt sources."""
        names = [full_name(name)]
        with self._new() as folder:
            tar = folder / "root.tar"
            bootstrap(tar, packages, suite, progress)
            with opened(tar, folder) as section:
                config = ImageConfig(cmd=["/bin/sh"], env={"PATH": _PATH})
                self._make(folder, [Layer(section)], config, relative_only=True, progress=progress)
                kept = self._composed(folder, [Layer(section)], config, "mmdebstrap", progress)
            tar.unlink()
            return self._publish([(folder, names, kept)])[0]

    def compose(
        self,
        name: str,
        layers: Sequence[KeptLayer | Path],
        document: dict[str, Any],
        *,
        progress: Progress | None = None,
    ) -> Image:
        """An image of layers that are here already (``parts(NAME).layers``) and of tars, lowest first.

        document: its OCI configuration; ``rootfs`` is filled in. name: empty for none. Raises as ``load_archive`` does.
        """
        names = [full_name(name)] if name else []
        config = from_oci(document, name or "the image")
        with self._new() as folder, ExitStack() as opening:
            used: list[Layer] = []
            for layer in layers:
                path, diff_id = (layer, "") if isinstance(layer, Path) else (layer.path, layer.diff_id)
                file = opening.enter_context(path.open("rb"))
                used.append(Layer(Section.whole(file, path.name), diff_id=diff_id))
            self._make(folder, used, config, relative_only=False, progress=progress)
            kept = [new if isinstance(old, Path) else old for old, new in zip(layers, used, strict=True)]
            with image_space_checked(folder):
                manifest = parts.compose(self._blobs, kept, document, progress=progress)
            return self._publish([(folder, names, Kept(manifest=manifest))])[0]

    def from_manifest(self, manifest: str, name: str, pulled: str, *, progress: Progress | None = None) -> Image:
        """An image of blobs that are here; ``manifest`` and ``pulled`` are digests. Raises as ``load_archive`` does."""
        found = parts.load(self._blobs, manifest)
        config = from_oci(found.document, name)
        with self._new() as folder, ExitStack() as opening:
            layers = [
                Layer(Section.whole(opening.enter_context(one.path.open("rb")), one.digest[:19]), diff_id=one.diff_id)
                for one in found.layers
            ]
            self._make(folder, layers, config, relative_only=False, progress=progress)
            return self._publish([(folder, [name], Kept(manifest=manifest, pulled=pulled))])[0]

    def write_tar(self, layers: Sequence[KeptLayer | Path], out: IO[bytes]) -> None:
        """The root that layers give when they are applied in order (as of ``compose``), as one tar.

        Raises ImageInvalid, NoSpace.
        """
        with ExitStack() as opening:
            used = []
            for layer in layers:
                path, diff_id = (layer, "") if isinstance(layer, Path) else (layer.path, layer.diff_id)
                used.append(Layer(Section.whole(opening.enter_context(path.open("rb")), path.name), diff_id=diff_id))
            write_tar(merge(used, relative_only=False, folder=self._folder), used, out)

    def adopt(self, digest: str, fill: Callable[[Path], None]) -> Image:
        """An image made elsewhere, whose two files ``fill`` writes. It gets no name. Raises ImageInvalid, NoSpace."""
        with self._new() as folder:
            fill(folder)
            _check_whole(folder, digest)
            return self._publish([(folder, [], None)])[0]

    def _composed(
        self, folder: Path, layers: Sequence[Layer], config: ImageConfig, how: str, progress: Progress | None
    ) -> Kept:
        """The parts of an image that was made from root file systems."""
        created = parts.now()
        document = {
            "architecture": oci_architecture(),
            "os": "linux",
            "created": created,
            "config": to_oci(config),
            "history": [{"created": created, "created_by": f"fcrun {how}", "comment": f"fcrun {how}"}],
        }
        with image_space_checked(folder):
            return Kept(manifest=parts.compose(self._blobs, layers, document, progress=progress))

    def _make(
        self,
        folder: Path,
        layers: Sequence[Layer],
        config: ImageConfig,
        *,
        relative_only: bool,
        progress: Progress | None,
    ) -> None:
        """Write ``image.squashfs`` and ``config.json`` into ``folder``, synced."""
        try:
            if progress is not None:
                progress("reading", 0, 0)
            tree = merge(layers, relative_only=relative_only, folder=folder)
            squashfs = folder / "image.squashfs"
            pack(tree, layers, squashfs, progress)
            with squashfs.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            document = Document(version=FORMAT, squashfs=f"sha256:{digest}", config=config)
            write(folder / "config.json", msgspec.json.encode(document, order="sorted"))
        except OSError as error:
            raise disk_error(error, folder) from error


def _check_whole(folder: Path, digest: str) -> None:
    found = {}
    for part in ("config.json", "image.squashfs"):
        with (folder / part).open("rb") as file:
            found[part] = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
    document = msgspec.json.decode((folder / "config.json").read_bytes(), type=Document)
    if found != {"config.json": digest, "image.squashfs": document.squashfs}:
        raise ImageInvalid(f"these are not the files of image {digest}", hint=AGAIN)
