"""``index.json`` of a store: which manifests there are, and what each tag means (docs/formats/manifest.md)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from perdure.errors import SnapshotInvalid
from perdure.formats.manifest import Descriptor

TAG = "org.opencontainers.image.ref.name"


class Index(msgspec.Struct, rename="camel"):
    """An OCI image index. ``manifests``: oldest first; one may be there several times, under several tags."""

    schema_version: int = 2
    media_type: str = "application/vnd.oci.image.index.v1+json"
    manifests: list[Descriptor] = []

    @staticmethod
    def read(path: Path) -> Index:
        """That of a file; an empty one where there is none. Raises SnapshotInvalid."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=Index)
        except FileNotFoundError:
            return Index()
        except msgspec.MsgspecError as error:
            raise SnapshotInvalid(f"{path} does not read: {error}") from None

    def digests(self) -> list[str]:
        """Of all manifests, each once."""
        return list(dict.fromkeys(entry.digest for entry in self.manifests))

    def tag(self, name: str, manifest: Descriptor) -> None:
        """Let ``name`` mean this manifest, and nothing else."""
        self.manifests = [entry for entry in self.manifests if entry.annotations.get(TAG) != name]
        self.manifests.append(msgspec.structs.replace(manifest, annotations={TAG: name}))

    def untag(self, name: str) -> bool:
        """Let ``name`` mean nothing; False: it did not. What it meant stays."""
        tagged = [entry for entry in self.manifests if entry.annotations.get(TAG) == name]
        self.manifests = [entry for entry in self.manifests if entry not in tagged]
        known = {entry.digest for entry in self.manifests}
        self.manifests += [
            msgspec.structs.replace(entry, annotations={}) for entry in tagged if entry.digest not in known
        ]
        return bool(tagged)

    def tags(self) -> dict[str, str]:
        """The digest that each tag means."""
        return {entry.annotations[TAG]: entry.digest for entry in self.manifests if TAG in entry.annotations}
