"""Rows of the tables as values, and back. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import zstandard

from perdure.context.log import Head, digest_of
from perdure.context.spending import spent_of
from perdure.context.values import unpack
from perdure.errors import NotFound, ProtocolError
from perdure.formats.chain import link_references
from perdure.model import Entry

COMPRESS_FROM = 256  # bytes


def no_run(run_id: str) -> NotFound:
    return NotFound(f"no such run: {run_id}", hint="`perdure runs` lists them.")


def was_pruned(run_id: str) -> NotFound:
    hint = f"What it returned is kept: `perdure status {run_id}`. An exported log of it can be imported."
    return NotFound(f"the log of run {run_id} was pruned", hint=hint)


def no_blob(digest: str) -> NotFound:
    return NotFound(f"no such blob: {digest}")


def head_of(row: tuple[Any, ...]) -> Head:
    run_id, key, created, epoch, branch, seq, version, value, pruned, asked, replayed, *spent = row
    decoded = msgspec.json.decode(value)
    return Head(
        run_id=run_id,
        key=key,
        created=created,
        epoch=epoch,
        branch=branch,
        seq=seq,
        version=version,
        value=decoded,
        pruned=bool(pruned),
        turns_asked=asked,
        turns_replayed=replayed,
        spent=spent_of(tuple(spent)),
    )


def as_entry(row: tuple[Any, ...], payload: Any) -> Entry:
    run_id, branch, seq, epoch, at, kind, key, _, digest = row
    return Entry(
        run_id=run_id,
        branch=branch,
        seq=seq,
        epoch=epoch,
        time=at,
        kind=kind,
        key=key,
        payload=payload,
        hash=digest.hex(),
    )


def entry_of(row: tuple[Any, ...], blob: Callable[[str], bytes] | None) -> Entry:
    """blob: gives the bytes of a digest; None leaves large values as references."""
    payload = msgspec.json.decode(row[7])
    return as_entry(row, unpack(payload, blob) if blob else payload)


def key_of(digest: str) -> bytes:
    """A digest as the tables have it; what is no digest is the key of nothing."""
    try:
        return bytes.fromhex(digest.removeprefix("sha256:"))
    except ValueError:
        return b""


def digest_at(key: bytes) -> str:
    return f"sha256:{key.hex()}"


def blob_row(digest: str, content: bytes) -> tuple[bytes, int, bytes, bytes]:
    """digest, whether content is a zstd frame, content, and the digests that it refers to, one after the other."""
    key, references = key_of(digest), refs_of(content)
    if len(content) >= COMPRESS_FROM:
        frame = zstandard.ZstdCompressor(level=3).compress(content)
        if len(frame) < len(content):
            return key, 1, frame, references
    return key, 0, content, references


def refs_of(content: bytes) -> bytes:
    """The digests that a blob refers to, one after the other."""
    return b"".join(key_of(found) for found in link_references(content))


def unzipped(zstd: int, content: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(content) if zstd else bytes(content)


def blob_of(key: bytes, zstd: int, content: bytes) -> bytes:
    """The bytes of a blob, if they are still those that its digest is of."""
    digest = digest_at(key)
    try:
        found = unzipped(zstd, content)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"blob {digest} does not unpack: {error}") from error
    if digest_of(found) != digest:
        raise ProtocolError(f"blob {digest} has other bytes than those it was written with")
    return found
