"""What the library's ``index.json`` says of each image (docs/formats/images.md)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from perdure.model import Frozen

FORMAT = 1


class Kept(Frozen, frozen=True, kw_only=True):
    """The parts of an image."""

    manifest: str  # digest of its manifest, a blob here
    pulled: str = ""  # digest that a registry has under its name, if it came from one


class Record(Frozen, frozen=True, kw_only=True):
    """One image in the index, oldest name first."""

    created: float
    size_bytes: int
    names: list[str] = msgspec.field(default_factory=list)
    # By name, for equal disks may come with different layers; the newest is also that of no name.
    kept: dict[str, Kept] = msgspec.field(default_factory=dict)

    def of(self, name: str) -> Kept | None:
        return self.kept.get(name) or self.kept.get("")

    def without(self, names: Sequence[str]) -> Record:
        return msgspec.structs.replace(
            self,
            names=[each for each in self.names if each not in names],
            kept={name: kept for name, kept in self.kept.items() if name not in names},
        )

    def called(self, name: str, kept: Kept) -> Record:
        """With other parts of the same disk under a name that it has."""
        return msgspec.structs.replace(self, kept={**self.kept, "": kept, name: kept})

    def named(self, names: Sequence[str], kept: Kept | None) -> Record:
        found = self.without(names)
        added = {} if kept is None else dict.fromkeys(["", *names], kept)
        return msgspec.structs.replace(found, names=[*found.names, *names], kept={**found.kept, **added})


class Index(Frozen, frozen=True, kw_only=True):
    version: int = FORMAT
    images: dict[str, Record] = msgspec.field(default_factory=dict)  # by digest (hex)
