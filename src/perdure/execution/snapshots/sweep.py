"""Mark and sweep over a store's folder, for ``Store.sweep``, which holds its locks: no name changes meanwhile.

What is leased stays, with all that it names: a snapshot that is being read, or one that is on its way here and not in
the index yet. So does what somebody claims who is still storing, and every blob while a manifest that stays does not
read: what it needs is not known. The index is written before anything goes: a crash leaves blobs that nobody needs,
which the next sweep takes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from perdure.errors import PerdureError, SnapshotInvalid
from perdure.execution.snapshots import ingest
from perdure.formats import manifest
from perdure.formats.manifest import Descriptor, check_digest, digest_of
from perdure.linux import locks
from perdure.reports import Swept

_log = logging.getLogger(__name__)
EVERY_LEASE = (
    "lease.lock"  # a file that is always there: locked by who reads a snapshot and had no room for its own lease
)


def sweep(
    folder: Path,
    manifests: Sequence[Descriptor],
    unneeded: Callable[[str], bool],
    *,
    keep: Callable[[list[Descriptor]], None] | None,
) -> Swept:
    """``keep`` replaces the index by the manifests that stay; None: a dry run, nothing is changed."""
    dry_run = keep is None
    swept = Swept(left_over=ingest.left_over(folder / "ingest", dry_run=dry_run))
    # First: who lets go of a claim or a lease has named it by then, so that it is needed when that is asked.
    leases, claims, everything = leased(folder), ingest.claimed(folder / "ingest"), everything_leased(folder)
    going = [digest for digest in dict.fromkeys(entry.digest for entry in manifests) if unneeded(digest)]
    if everything:
        swept.leased = going
        return swept
    swept.leased = [digest for digest in going if digest in leases | claims]
    swept.forgotten = [digest for digest in going if digest not in swept.leased]
    staying = [entry for entry in manifests if entry.digest not in swept.forgotten]
    if keep is not None and swept.forgotten:
        keep(staying)
    kept = {entry.digest for entry in staying}
    kept |= {digest for digest in leases if _blob(folder, digest).exists()}
    needed = _mark(folder, kept, swept) | claims
    swept.working_sets, _ = _delete(folder / "working-sets", _names(kept), dry_run)
    _delete(folder / "leases", _names(leases), dry_run)
    if swept.unreadable:
        _log.warning("no blobs are deleted: these snapshots do not read: %s", swept.unreadable)
        return swept
    swept.blobs, swept.blob_bytes = _delete(folder / "blobs" / "sha256", _names(needed), dry_run)
    _delete(folder / "remotes", _names(needed), dry_run)
    return swept


def _mark(folder: Path, kept: Iterable[str], swept: Swept) -> set[str]:
    """The digests of all blobs that these manifests need, themselves included."""
    needed = set()
    for digest in kept:
        try:
            data = _blob(folder, digest).read_bytes()
            if digest_of(data) != digest:
                raise SnapshotInvalid("it does not have its digest: it was damaged or changed")
            needed |= {digest, *(blob.digest for blob in manifest.blobs_of(data))}
        except (PerdureError, OSError) as error:
            swept.unreadable[digest] = str(error)
    return needed


def reader_of(folder: Path, blobs: set[str]) -> str:
    """A snapshot that is leased and needs one of these blobs (digests), or nothing. The same lock is held."""
    for digest in leased(folder):
        try:
            needed = manifest.blobs_of(_blob(folder, digest).read_bytes())
        except (PerdureError, OSError):
            continue  # it is gone, or does not read: nothing is restored from it
        if any(blob.digest in blobs for blob in needed):
            return digest
    return ""


def leased(folder: Path) -> set[str]:
    """The digests of snapshots that somebody holds. Nobody can take one while the store's lock is held exclusively."""
    return {f"sha256:{lease.name}" for lease in (folder / "leases").iterdir() if locks.is_held(lease)}


def everything_leased(folder: Path) -> bool:
    """Somebody reads a snapshot, and had no room to say which one."""
    return locks.is_held(folder / EVERY_LEASE)


def _blob(folder: Path, digest: str) -> Path:
    return folder / "blobs" / "sha256" / check_digest(digest)


def _delete(folder: Path, but: set[str], dry_run: bool) -> tuple[int, int]:
    """(number, bytes) of the files that are deleted: all but those of these names."""
    count = size = 0
    for path in folder.iterdir():
        if path.name not in but:
            count, size = count + 1, size + path.stat().st_size
            if not dry_run:
                path.unlink()
    return count, size


def _names(digests: Iterable[str]) -> set[str]:
    return {digest.removeprefix("sha256:") for digest in digests}
