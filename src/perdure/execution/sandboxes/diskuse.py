"""What a node's disk is taken by, and how much of that nothing needs: ``fcrun system df``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from perdure.execution.images.library import ImageLibrary
from perdure.execution.sandboxes.keptdisks import SECTOR_BYTES
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.states import LIVE
from perdure.host.paths import Home
from perdure.model import DiskUse, VolumeInfo
from perdure.model import SandboxState as S
from perdure.reports import Swept

_OVER = (S.CREATED, S.EXITED)  # what `fcrun system prune` removes


def measure(
    home: Home,
    library: ImageLibrary,
    sandboxes: Sequence[Sandbox],
    snapshots: int,
    swept: Swept,
    volumes: Sequence[VolumeInfo],
) -> list[DiskUse]:
    """Of every kind. snapshots: how many are stored. swept: what a sweep of the store would delete. Blocking."""
    used = {sandbox.record.image_digest for sandbox in sandboxes}
    images = {image.digest: [image.squashfs.parent, *library.blob_files(image.digest)] for image in library.list()}
    images_bytes = allocated([path for paths in images.values() for path in paths] + library.incoming_files())
    needed_bytes = allocated(path for digest, paths in images.items() if digest in used for path in paths)
    kept = [path for sandbox in sandboxes if (path := sandbox.folder.root / "disk").exists()]
    states = [sandbox.state for sandbox in sandboxes]
    over = [sandbox.folder.root for sandbox in sandboxes if sandbox.state in _OVER]
    kept_bytes, frames_bytes = allocated(kept), allocated([home.frames])
    templates = [path for path in home.templates.iterdir() if path.is_dir()]
    frames = [path for path in home.frames.glob("*") if not path.suffix]
    return [
        DiskUse(
            kind="images",
            total=len(images),
            active=len(images.keys() & used),
            size_bytes=images_bytes,
            reclaimable_bytes=images_bytes - needed_bytes,
        ),
        DiskUse(
            kind="sandboxes",
            total=len(states),
            active=sum(state in LIVE for state in states),
            size_bytes=allocated([home.sandboxes]) - kept_bytes,
            reclaimable_bytes=allocated(over),
        ),
        DiskUse(
            kind="volumes",
            total=len(volumes),
            active=sum(bool(volume.users) for volume in volumes),
            size_bytes=sum(volume.used_bytes for volume in volumes),
            reclaimable_bytes=sum(volume.used_bytes for volume in volumes if not volume.users),
        ),
        DiskUse(kind="kept-disks", total=len(kept), active=0, size_bytes=kept_bytes, reclaimable_bytes=kept_bytes),
        DiskUse(
            kind="snapshots",
            total=snapshots,
            active=snapshots - len(swept.forgotten),
            size_bytes=allocated([home.store]),
            reclaimable_bytes=swept.blob_bytes,
        ),
        DiskUse(
            kind="templates",
            total=len(templates),
            active=len(templates) - len(swept.templates),
            size_bytes=allocated([home.templates]),
            reclaimable_bytes=swept.template_bytes,
        ),
        DiskUse(kind="frames", total=len(frames), active=0, size_bytes=frames_bytes, reclaimable_bytes=frames_bytes),
    ]


def allocated(paths: Iterable[Path]) -> int:
    """Of files, and of all files below folders: each once, also where it has several names. What goes meanwhile counts
    nothing."""
    found: dict[tuple[int, int], int] = {}
    for path in paths:
        for folder, _, names in [(str(path.parent), [], [path.name])] if path.is_file() else os.walk(path):
            for name in names:
                try:
                    facts = os.lstat(f"{folder}/{name}")
                except FileNotFoundError:
                    continue
                found[facts.st_dev, facts.st_ino] = facts.st_blocks * SECTOR_BYTES
    return sum(found.values())
