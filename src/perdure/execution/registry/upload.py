"""Artifacts on their way into a store: several blobs at once, what is there already is skipped, manifests last."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import NotFound, PerdureError, SnapshotInvalid
from perdure.execution.registry.contract import BlobSink
from perdure.formats.manifest import MANIFEST, Descriptor, digest_of
from perdure.host.progress import Progress

BLOBS = 4  # at once


@dataclass(frozen=True)
class Parcel:
    """An artifact here: its tag, its manifest, and the files that hold its blobs."""

    tag: str
    manifest: bytes
    blobs: Sequence[tuple[Descriptor, Path]]
    media_type: str = MANIFEST

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(media_type=self.media_type, digest=digest_of(self.manifest), size=len(self.manifest))


@dataclass(frozen=True)
class Sent:
    """What an upload did."""

    tags: Sequence[str]
    sent_bytes: int
    held_bytes: int  # were there already


def send(
    remote: BlobSink,
    parcels: Sequence[Parcel],
    progress: Progress,
    *,
    elsewhere: Callable[[Descriptor], bool] = lambda descriptor: False,
    told: Callable[[Descriptor, str], None] = lambda descriptor, how: None,
    invalid: type[PerdureError] = SnapshotInvalid,
) -> Sent:
    """Blobs first, each verified before it leaves; then the manifests, in order. A tag names only what is complete.

    ``elsewhere`` is asked to bring a blob there without its being sent. ``told`` hears of each blob whether it is
    "there", "brought" or "sent" now. Raises ``invalid`` (a blob here was damaged), NotFound (it was removed meanwhile),
    and what the store raises.
    """
    files = {descriptor.digest: (descriptor, path) for parcel in parcels for descriptor, path in parcel.blobs}
    total = sum(descriptor.size for descriptor, _ in files.values())
    guard, stopped = threading.Lock(), threading.Event()
    done = sent = 0

    def one(descriptor: Descriptor, path: Path) -> None:
        nonlocal done, sent
        if stopped.is_set():
            return
        how = "there" if remote.has(descriptor) else "brought" if elsewhere(descriptor) else "sent"
        if how == "sent":
            _check(descriptor, path, invalid)
            remote.put(descriptor, path)
        with guard:
            told(descriptor, how)
            done += descriptor.size
            sent += descriptor.size if how == "sent" else 0
            progress("Pushing", done, total)

    progress("Pushing", 0, total)
    with ThreadPoolExecutor(BLOBS, thread_name_prefix="push") as pool:
        uploads = [pool.submit(one, *file) for file in files.values()]
        finished, _ = wait(uploads, return_when=FIRST_EXCEPTION)
        if any(upload.exception() for upload in finished):
            stopped.set()
    for upload in uploads:
        upload.result()
    for parcel in parcels:
        remote.tag(parcel.tag, parcel.manifest, parcel.descriptor)
    return Sent([parcel.tag for parcel in parcels], sent, total - sent)


def _check(descriptor: Descriptor, path: Path, invalid: type[PerdureError]) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise NotFound(f"{path} ({descriptor.media_type}) was removed before it was pushed") from None
    if "sha256:" + found != descriptor.digest:
        raise invalid(
            f"{path} ({descriptor.media_type}) does not have the digest {descriptor.digest}: it was damaged or changed"
        )
