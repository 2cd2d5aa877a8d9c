"""The hash chain over a run's entries: what is hashed, and its verification. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from perdure.context.log import Stretch, Verification, canonical
from perdure.context.values import links
from perdure.errors import NotFound, ProtocolError

Place = tuple[str, int]  # run_id, branch
Facts = tuple[Any, ...]  # run_id, branch, seq, epoch, time, kind, key, payload as stored (canonical JSON bytes)


def root_hash(run_id: str) -> bytes:
    """What the first entry of a run chains to."""
    return hashlib.sha256(b"perdure context log 1\n" + run_id.encode()).digest()


def entry_hash(before: bytes, facts: Facts) -> bytes:
    """SHA-256 of: the hash before, the canonical JSON of all facts but the payload, a line feed, the payload."""
    return hashlib.sha256(before + canonical(facts[:7]) + b"\n" + facts[7]).digest()


def verify(
    stretches: list[Stretch],
    parents: Mapping[Place, Place],
    rows: Callable[[Stretch], Iterable[tuple[Any, ...]]],
    blob: Callable[[str], bytes],
) -> Verification:
    """Recompute the chain of every stretch (parents come before children) and read every blob that an entry needs."""
    hashes: dict[tuple[Place, int], bytes] = {}
    entries, seen = 0, set[str]()
    for stretch in stretches:
        at = stretch.run_id, stretch.branch
        seq = min(stretch.fork_seq, stretch.upto)
        before = _hash_at(parents, hashes, at, seq)
        for row in rows(stretch):
            where = f"run {stretch.run_id}, branch {stretch.branch}, entry {row[2]}"
            if row[2] != seq + 1:
                raise ProtocolError(f"{where}: entry {seq + 1} is missing before it")
            if entry_hash(before, row[:8]) != row[8]:
                raise ProtocolError(f"{where} is not what was appended: its hash differs", seq=row[2])
            _verify_blobs(msgspec.json.decode(row[7]), blob, seen, where)
            seq, before = row[2], row[8]
            hashes[at, seq] = before
            entries += 1
        if seq != stretch.upto:
            where = f"run {stretch.run_id}, branch {stretch.branch}"
            raise ProtocolError(f"{where} ends at entry {seq}, not at {stretch.upto}")
    return Verification(entries=entries, branches=len(stretches), blobs=len(seen))


def _hash_at(parents: Mapping[Place, Place], hashes: Mapping[tuple[Place, int], bytes], at: Place, seq: int) -> bytes:
    """The hash of the entry that a branch forks from."""
    while seq and at in parents:
        at = parents[at]
        if (at, seq) in hashes:
            return hashes[at, seq]
    if seq:
        raise ProtocolError(f"run {at[0]}: the entry {seq} that a branch forks from is missing")
    while at in parents:
        at = parents[at]
    return root_hash(at[0])


def _verify_blobs(stored: Any, blob: Callable[[str], bytes], seen: set[str], where: str) -> None:
    if isinstance(stored, list):
        for item in stored:
            _verify_blobs(item, blob, seen, where)
    elif isinstance(stored, dict):
        if stored.keys() == {"$value"}:
            _verify_blobs(list(stored["$value"].values()), blob, seen, where)
            return
        try:
            if stored.keys() == {"$blob"} and stored["$blob"] not in seen:
                blob(stored["$blob"])
                seen.add(stored["$blob"])
            elif stored.keys() == {"$list"} and stored["$list"] not in seen:
                _verify_list(stored["$list"], blob, seen, where)
            else:
                for part in stored.values():
                    _verify_blobs(part, blob, seen, where)
        except NotFound as error:
            raise ProtocolError(f"{where}: a part of it is missing: {error.message}") from error


def _verify_list(digest: str, blob: Callable[[str], bytes], seen: set[str], where: str) -> None:
    current: str | None = digest
    for link in links(digest, blob):
        if current in seen:
            return  # the rest was read before
        seen.add(str(current))
        current = link["parent"]
        _verify_blobs(link["item"], blob, seen, where)
