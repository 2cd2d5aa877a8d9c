"""The hash chain over a run's entries: what is hashed, what values refer to, and its verification. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple, Protocol

import msgspec

from perdure.errors import ProtocolError

_LINK = b'{"item":'  # how a link begins
_encoder = msgspec.json.Encoder(order="deterministic")

Place = tuple[str, int]  # run_id, branch
Facts = tuple[Any, ...]  # run_id, branch, seq, epoch, time, kind, key, payload as stored (canonical JSON bytes)


class Stretch(Protocol):
    """What one branch gives to those below it: its own entries after ``fork_seq``, up to and including ``upto``."""

    @property
    def run_id(self) -> str: ...
    @property
    def branch(self) -> int: ...
    @property
    def fork_seq(self) -> int: ...
    @property
    def upto(self) -> int: ...


class Counted(NamedTuple):
    """What a verification looked at."""

    entries: int
    branches: int
    blobs: int


def canonical(value: Any) -> bytes:
    """Canonical JSON: UTF-8, sorted keys, no spaces. Equal values give equal bytes."""
    return _encoder.encode(value)


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def root_hash(run_id: str) -> bytes:
    """What the first entry of a run chains to."""
    return hashlib.sha256(b"perdure context log 1\n" + run_id.encode()).digest()


def entry_hash(before: bytes, facts: Facts) -> bytes:
    """SHA-256 of: the hash before, the canonical JSON of all facts but the payload, a line feed, the payload."""
    return hashlib.sha256(before + canonical(facts[:7]) + b"\n" + facts[7]).digest()


def references(stored: Any) -> Iterator[str]:
    """The digests that a stored value refers to by itself (what those refer to is not looked at)."""
    if isinstance(stored, list):
        for item in stored:
            yield from references(item)
    elif isinstance(stored, dict):
        if stored.keys() == {"$blob"} or stored.keys() == {"$list"}:
            yield from map(str, stored.values())
        elif stored.keys() == {"$value"}:
            yield from references(list(stored["$value"].values()))
        else:
            yield from references(list(stored.values()))


def link_references(content: bytes) -> list[str]:
    """The digests that a blob refers to. Its bytes alone say so: a text that reads like a link counts as one."""
    if not content.startswith(_LINK):
        return []
    try:
        link = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return []
    if not isinstance(link, dict) or link.keys() != {"item", "length", "parent"}:
        return []
    found = list(references(link["item"]))
    if isinstance(link["parent"], str):
        found.append(link["parent"])
    return [digest for digest in dict.fromkeys(found) if _is_digest(digest)]


def _is_digest(text: str) -> bool:
    return len(text) == 71 and text.startswith("sha256:") and not set(text[7:]) - set("0123456789abcdef")


class Verifier:
    """Recomputes the chain, fed stretch by stretch (parents before children) and entry by entry, in order.

    ``ProtocolError`` at the first that does not fit.
    """

    def __init__(self, stretches: Sequence[Stretch], parents: Mapping[Place, Place]) -> None:
        """parents: the branch that each of them forks from, but for the first of a chain."""
        self._stretches = {(stretch.run_id, stretch.branch): stretch for stretch in stretches}
        self._parents = parents
        # The hashes at which a branch forks are needed again; those of all others are not.
        self._forks = {(self._owner(at, stretch.fork_seq), stretch.fork_seq) for at, stretch in self._stretches.items()}
        self._kept: dict[tuple[Place, int], bytes] = {}
        self._entries = 0
        self._blobs = set[str]()

    def begin(self, stretch: Stretch) -> None:
        self._at, self._upto = (stretch.run_id, stretch.branch), stretch.upto
        self._seq = min(stretch.fork_seq, stretch.upto)
        self._before = self._hash_at(self._at, self._seq)

    def entry(self, row: tuple[Any, ...]) -> set[str]:
        """row: Facts and the hash. Returns the blobs that it refers to and that were not seen yet, for ``blobs``."""
        where = f"{self._where}, entry {row[2]}"
        if (row[0], row[1]) != self._at or row[2] != self._seq + 1:
            raise ProtocolError(f"{where}: entry {self._seq + 1} is missing before it")
        if entry_hash(self._before, row[:8]) != row[8]:
            raise ProtocolError(f"{where} is not what was appended: its hash differs", seq=row[2])
        self._seq, self._before = row[2], row[8]
        if (self._at, row[2]) in self._forks:
            self._kept[self._at, row[2]] = row[8]
        self._entries += 1
        try:
            return set(references(msgspec.json.decode(row[7]))) - self._blobs
        except msgspec.DecodeError as error:
            raise ProtocolError(f"{where}: its payload is not JSON: {error}") from error

    def blobs(self, needed: Iterable[str], found: Mapping[str, bytes]) -> None:
        """What was found of the blobs that entries need and, from there on, of those that these refer to."""
        for digest in (*needed, *(below for content in found.values() for below in link_references(content))):
            if digest not in found and digest not in self._blobs:
                where = f"{self._where}, entry {self._seq} or one before"
                raise ProtocolError(f"{where}: a part of it is missing: no such blob: {digest}")
        self._blobs.update(found)

    @property
    def seen(self) -> Set[str]:
        """The blobs that were found."""
        return self._blobs

    def end(self) -> None:
        """The stretch has no more entries."""
        if self._seq != self._upto:
            raise ProtocolError(f"{self._where} ends at entry {self._seq}, not at {self._upto}")

    def result(self) -> Counted:
        return Counted(self._entries, len(self._stretches), len(self._blobs))

    @property
    def _where(self) -> str:
        return f"run {self._at[0]}, branch {self._at[1]}"

    def _owner(self, at: Place, seq: int) -> Place:
        """The branch above ``at`` that has the entry which ``at`` forks from; the root, when that is none."""
        while at in self._parents:
            at = self._parents[at]
            if at not in self._stretches or self._stretches[at].fork_seq < seq:
                break
        return at

    def _hash_at(self, at: Place, seq: int) -> bytes:
        owner = self._owner(at, seq)
        if not seq:
            return root_hash(owner[0])
        if (owner, seq) not in self._kept:
            raise ProtocolError(f"run {owner[0]}: the entry {seq} that a branch forks from is missing")
        return self._kept[owner, seq]
