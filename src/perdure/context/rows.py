"""Rows of the tables as values, and back."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec
import zstandard

from perdure.context.log import Head, digest_of
from perdure.context.values import unpack
from perdure.errors import NotFound, ProtocolError
from perdure.model import Entry

COMPRESS_FROM = 256  # bytes


def no_run(run_id: str) -> NotFound:
    return NotFound(f"no such run: {run_id}", hint="`perdure runs` lists them.")


def head_of(row: tuple[Any, ...]) -> Head:
    run_id, key, created, epoch, branch, seq, version, value = row
    decoded = msgspec.json.decode(value)
    return Head(
        run_id=run_id, key=key, created=created, epoch=epoch, branch=branch, seq=seq, version=version, value=decoded
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


def entry_of(db: sqlite3.Connection, row: tuple[Any, ...], expand: bool) -> Entry:
    payload = msgspec.json.decode(row[7])
    return as_entry(row, unpack(payload, lambda digest: blob_of(db, digest)) if expand else payload)


def blob_row(digest: str, content: bytes) -> tuple[bytes, int, bytes]:
    key = bytes.fromhex(digest.removeprefix("sha256:"))
    if len(content) >= COMPRESS_FROM:
        frame = zstandard.ZstdCompressor(level=3).compress(content)
        if len(frame) < len(content):
            return key, 1, frame
    return key, 0, content


def blob_of(db: sqlite3.Connection, digest: str) -> bytes:
    try:
        key = bytes.fromhex(digest.removeprefix("sha256:"))
    except ValueError:
        key = b""
    row = db.execute("SELECT zstd, content FROM blobs WHERE digest = ?", (key,)).fetchone()
    if row is None:
        raise NotFound(f"no such blob: {digest}")
    try:
        content = zstandard.ZstdDecompressor().decompress(row[1]) if row[0] else bytes(row[1])
    except zstandard.ZstdError as error:
        raise ProtocolError(f"blob {digest} does not unpack: {error}") from error
    if digest_of(content) != digest:
        raise ProtocolError(f"blob {digest} has other bytes than those it was written with")
    return content
