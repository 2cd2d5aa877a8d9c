from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...formats.manifest import Facts, Snapshot
from .store import Store


@dataclass(frozen=True)
class RestoreFiles:
    state: Path
    memory_map: Path
    overlay: Path


def prepare(
    store: Store,
    snapshot: Snapshot,
    *,
    folder: Path,  # gets `state`, `memory.map` and `overlay`
    templates: Path,  # home.templates
    facts: Facts,  # of here (Template.facts); a difference raises SnapshotInvalid
) -> RestoreFiles: ...
