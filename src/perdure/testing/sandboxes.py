"""Sandboxes without a machine, as a node finds them in its folder when it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from perdure.execution.sandboxes.record import Folder, KeptSnapshot, Record
from perdure.formats.manifest import Snapshot
from perdure.model import SandboxSpec, SandboxState


def sleeping(sandboxes: Path, sandbox_id: str, name: str, line: Sequence[Snapshot], **values: Any) -> Record:
    """One that was suspended into each snapshot of the line, in this order. ``values`` of its record differ.

    ``sandboxes``: the node's folder of them (``Home.sandboxes``).
    """
    record = Record(
        id=sandbox_id,
        name=name,
        spec=SandboxSpec(image="tiny"),
        image_digest="",
        created=1.0,
        state=SandboxState.SUSPENDED,
        parent=line[-1].digest,
        snapshots=[KeptSnapshot(info=one.info()) for one in line],
    )
    record = msgspec.structs.replace(record, **values)
    folder = Folder(sandboxes / sandbox_id)
    folder.root.mkdir(parents=True)
    folder.save(record)
    return record


def exited(sandboxes: Path, sandbox_id: str, spec: SandboxSpec, **values: Any) -> Record:
    """One that has exited, by itself and with status 0, where ``values`` of its record do not differ."""
    facts: dict[str, Any] = {"started": 1.0, "finished": 2.0, "exit_status": 0, "cause": "exit"} | values
    record = Record(
        id=sandbox_id,
        name=spec.name or sandbox_id[:3],
        spec=spec,
        image_digest="",
        created=1.0,
        **{"state": SandboxState.EXITED} | facts,
    )
    folder = Folder(sandboxes / sandbox_id)
    folder.root.mkdir(parents=True)
    folder.save(record)
    return record
