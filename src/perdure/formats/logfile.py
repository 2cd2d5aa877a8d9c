"""The log of a run as a file of JSON lines, which verifies without a database (docs/formats/log-file.md). Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from perdure.errors import ProtocolError
from perdure.formats.chain import Counted, Place, Verifier, digest_of, link_references

VERSION = 1
LINE_MAX_BYTES = 256 << 20

Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]  # what a column holds
Row = tuple[Any, ...]  # run_id, branch, seq, epoch, time, kind, key, payload as stored, hash


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """A branch of the run, or what it shares of another run's; parents come before children."""

    run_id: str
    branch: Number
    fork_seq: Number
    upto: Number
    parent_run: str | None
    parent: Number | None


class Beginning(msgspec.Struct, frozen=True, kw_only=True):
    """The first line."""

    perdure_log: int  # version of the format
    run_id: str
    key: str | None
    created: float
    epoch: Number
    branch: Number  # the current one
    value: Any  # the owner's summary
    stretches: list[Stretch]

    @property
    def parents(self) -> dict[Place, Place]:
        return {
            (s.run_id, s.branch): (s.parent_run or s.run_id, s.parent) for s in self.stretches if s.parent is not None
        }

    def entries(self) -> int:
        return sum(max(0, stretch.upto - stretch.fork_seq) for stretch in self.stretches)


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """What entries refer to, before the first that does."""

    blob: str
    text: str | None = None
    base64: str | None = None

    @staticmethod
    def of(digest: str, content: bytes) -> Blob:
        try:
            return Blob(blob=digest, text=content.decode())
        except UnicodeDecodeError:
            return Blob(blob=digest, base64=base64.b64encode(content).decode())

    def content(self) -> bytes:
        """ProtocolError: not the bytes that the digest is of."""
        try:
            content = base64.b64decode(self.base64 or "", validate=True) if self.text is None else self.text.encode()
        except (ValueError, UnicodeEncodeError):
            content = b""
        if digest_of(content) != self.blob:
            raise ProtocolError(f"blob {self.blob} has other bytes than those its digest is of")
        return content


class EntryLine(msgspec.Struct, frozen=True, kw_only=True):
    entry: tuple[str, Number, Number, Number, float, str, str | None]
    payload: msgspec.Raw  # byte for byte as it was hashed
    hash: str

    @staticmethod
    def of(row: Row) -> EntryLine:
        return EntryLine(entry=row[:7], payload=msgspec.Raw(row[7]), hash=row[8].hex())

    def row(self) -> Row:
        try:
            return (*self.entry, bytes(self.payload), bytes.fromhex(self.hash))
        except ValueError:
            raise ProtocolError(f"the hash of entry {self.entry[2]} is not one: {self.hash!r}") from None


class End(msgspec.Struct, frozen=True, kw_only=True):
    """The last line: without it something is missing."""

    end: bool
    entries: int
    blobs: int


_NOTHING = msgspec.Raw(b"")


class _Line(msgspec.Struct, frozen=True):
    """To see what a line is."""

    perdure_log: msgspec.Raw = _NOTHING
    blob: msgspec.Raw = _NOTHING
    entry: msgspec.Raw = _NOTHING
    end: msgspec.Raw = _NOTHING


Part = Beginning | Blob | Row | Counted


def encode(part: Beginning | Blob | EntryLine | End) -> bytes:
    return msgspec.json.encode(part) + b"\n"


class Reader:
    """Fed line by line, gives what each is once it is verified; ``ProtocolError`` names the line that does not fit."""

    def __init__(self) -> None:
        self.beginning: Beginning | None = None
        self.is_complete = False
        self._number = 0
        self._at = -1  # which stretch
        self._left = 0  # of its entries
        self._blobs: set[str] = set()
        self._entries = 0

    def feed(self, line: bytes) -> Part | None:
        """None for an empty line."""
        self._number += 1
        if not line.strip():
            return None
        try:
            return self._part(line)
        except ProtocolError as error:
            hint = "The file was changed or cut: export it again."
            raise ProtocolError(f"line {self._number}: {error.message}", hint=hint) from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            hint = "Give a file that `perdure log export` wrote."
            raise ProtocolError(f"line {self._number} is not one of an exported log: {error}", hint=hint) from error

    def _part(self, line: bytes) -> Part:
        if self.is_complete:
            raise ProtocolError("there is more after the end")
        kind = msgspec.json.decode(line, type=_Line)
        if self.beginning is None:
            return self._begin(line, kind)
        if bytes(kind.blob):
            blob = msgspec.json.decode(line, type=Blob)
            self._blobs.add(blob.blob)
            content = blob.content()
            for below in link_references(content):
                if below not in self._blobs:
                    raise ProtocolError(f"blob {blob.blob} refers to one that is missing: {below}")
            return blob
        if bytes(kind.entry):
            return self._entry(msgspec.json.decode(line, type=EntryLine).row())
        if bytes(kind.end):
            end = msgspec.json.decode(line, type=End)
            self._go_on()
            if self._left or self._at < len(self.beginning.stretches):
                raise ProtocolError("it ends before its last entry")
            if (end.entries, end.blobs) != (self._entries, len(self._blobs)):
                raise ProtocolError(f"it ends after {self._entries} entries, of {end.entries}")
            self.is_complete = True
            return self._verifier.result()._replace(blobs=len(self._blobs))
        raise ProtocolError("it is neither an entry nor what one refers to")

    def _begin(self, line: bytes, kind: _Line) -> Beginning:
        if not bytes(kind.perdure_log):
            raise ProtocolError("this does not begin like an exported log")
        beginning = msgspec.json.decode(line, type=Beginning)
        if beginning.perdure_log != VERSION:
            raise ProtocolError(f"the exported log has version {beginning.perdure_log}, this is {VERSION}")
        places = [(stretch.run_id, stretch.branch) for stretch in beginning.stretches]
        if len(set(places)) != len(places) or (beginning.run_id, beginning.branch) not in places:
            raise ProtocolError("its branches are not those of one run")
        for number, stretch in enumerate(beginning.stretches):
            parent = beginning.parents.get(places[number])
            if not stretch.fork_seq >= 0 or (parent is not None and parent not in places[:number]):
                raise ProtocolError(f"branch {stretch.branch} of run {stretch.run_id} has no parent before it")
        self.beginning = beginning
        self._verifier = Verifier(beginning.stretches, beginning.parents)
        return beginning

    def _go_on(self) -> None:
        """To the stretch that the next entry is of."""
        assert self.beginning is not None
        while not self._left and self._at < len(self.beginning.stretches):
            if self._at >= 0:
                self._verifier.end()
            self._at += 1
            if self._at < len(self.beginning.stretches):
                stretch = self.beginning.stretches[self._at]
                self._verifier.begin(stretch)
                self._left = max(0, stretch.upto - stretch.fork_seq)

    def _entry(self, row: Row) -> Row:
        self._go_on()
        if not self._left:
            raise ProtocolError("there are more entries than its branches have")
        needed = self._verifier.entry(row)
        if missing := [digest for digest in sorted(needed) if digest not in self._blobs]:
            raise ProtocolError(f"entry {row[2]} refers to a blob that is missing: {missing[0]}")
        self._left -= 1
        self._entries += 1
        return row


def verify(lines: Iterable[bytes]) -> Counted:
    """Of a whole file. ``ProtocolError`` names the first line that does not fit."""
    reader, found = Reader(), None
    for line in lines:
        part = reader.feed(line)
        found = part if isinstance(part, Counted) else found
    if found is None:
        raise cut()
    return found


def cut() -> ProtocolError:
    return ProtocolError("the exported log is cut: it has no last line", hint="Export it again.")
