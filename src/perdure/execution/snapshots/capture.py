from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...formats.manifest import Facts, Snapshot
from ...model import LogPosition
from .store import Store
from .templates import Template


def pack(
    store: Store,
    *,
    folder: Path,  # holds Firecracker's `state` and sparse `memory`, a diff to ``parent``
    overlay: Path,  # the sandbox's sparse ext4 disk
    parent: Snapshot | Template,
    templates: Path,  # home.templates
    sandbox_id: str,
    image_digest: str,
    facts: Facts | None = None,  # the parent's
    position: LogPosition | None = None,
    pause_s: float = 0.0,
    working_set: Sequence[int] = (),
) -> Snapshot: ...
