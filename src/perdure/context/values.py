"""How payloads are stored: large or repeated parts go to content-addressed blobs. Pure.

- A string of ``BLOB_FROM`` bytes or more becomes ``{"$blob": DIGEST}``: the answer of one turn and its repetition in
  the next request are stored once.
- A list whose JSON is that long becomes ``{"$list": DIGEST}``, the digest of its last *link*: a blob with the JSON
  ``{"item": ITEM, "length": N, "parent": DIGEST or null}``. A list that begins like another one shares its links, so
  that a conversation which is sent again with one message more costs that message.
- An object that has one of these names itself is wrapped: ``{"$value": OBJECT}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from perdure.errors import InvalidValue, ProtocolError, TooLarge
from perdure.formats.chain import canonical, digest_of

BLOB_FROM = 512  # bytes of JSON; a blob's row costs about 100
PAYLOAD_MAX_BYTES = 4 << 20  # of an entry, as it is stored: long strings and lists are not in it
SUMMARY_MAX_BYTES = 64 << 20  # of a run, or of what is kept beside the runs
BLOB_MAX_BYTES = 256 << 20  # every database takes it, and an exported log's line holds it
_MARKS = frozenset(("$blob", "$list", "$value"))
_DOLLAR = ord("$")

Blobs = dict[str, bytes]


def plain(text: str, what: str) -> str:
    """A text that a column can hold, on every database. InvalidValue names what it was to be."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidValue(f"the {what} is not text: {text!r}: {error}") from error
    if "\0" in text:
        raise InvalidValue(f"the {what} has a NUL in it: {text!r}", hint="Leave it out.")
    return text


def encode(value: Any, what: str, max_bytes: int = SUMMARY_MAX_BYTES) -> bytes:
    """Canonical JSON. InvalidValue: ``what`` is no JSON value. TooLarge names its size and the limit."""
    try:
        content = canonical(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidValue(f"the {what} is not a JSON value: {error}") from error
    check_size(len(content), max_bytes, what)
    return content


def check_size(size_bytes: int, max_bytes: int, what: str) -> None:
    if size_bytes > max_bytes:
        hint = "Keep large things in files, and give their names."
        message = f"the {what} has {size_bytes} bytes, the limit is {max_bytes}"
        raise TooLarge(message, hint=hint, size_bytes=size_bytes, max_bytes=max_bytes)


def packed(value: Any, what: str, blobs: Blobs) -> bytes:
    """The JSON of the stored form. Nothing of a short one is kept elsewhere, so that it need not be looked through."""
    try:
        content = canonical(value)
    except Exception:  # below it is said of what
        content = b"null"
    # A number that JSON does not have comes out as null; a name that begins with $ may be one of ours.
    if len(content) >= BLOB_FROM or _DOLLAR in content or b"null" in content:
        return encode(pack(value, blobs), what, PAYLOAD_MAX_BYTES)
    return content


def pack(value: Any, blobs: Blobs) -> Any:
    """The stored form of a JSON value; what it refers to is added to ``blobs``, referred-to before referring."""
    try:
        return _pack(value, blobs)
    except RecursionError as error:
        raise InvalidValue("a value is nested too deeply, or holds itself") from error


def _pack(value: Any, blobs: Blobs) -> Any:
    if isinstance(value, str):
        if len(value) * 4 < BLOB_FROM or len(content := value.encode("utf-8", "surrogatepass")) < BLOB_FROM:
            return value
        check_size(len(content), BLOB_MAX_BYTES, "text in a value")
        digest = digest_of(content)
        blobs.setdefault(digest, content)
        return {"$blob": digest}
    if isinstance(value, dict):
        packed = {str(name): _pack(part, blobs) for name, part in value.items()}
        return {"$value": packed} if not _MARKS.isdisjoint(packed) else packed
    if isinstance(value, list | tuple):
        return _pack_list(list(value), blobs)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidValue(f"{value} is not a JSON value", hint="Use null, or a string.")
    return value


def _pack_list(items: list[Any], blobs: Blobs) -> Any:
    packed = [_pack(item, blobs) for item in items]
    if len(encode(packed, "list in a value")) < BLOB_FROM:
        return packed
    parent: str | None = None
    for length, item in enumerate(packed, 1):
        link = canonical({"item": item, "length": length, "parent": parent})
        parent = digest_of(link)
        blobs.setdefault(parent, link)
    return {"$list": parent}


def unpack(stored: Any, get: Callable[[str], bytes]) -> Any:
    """The value that ``pack`` was given; ``get`` returns a blob's bytes."""
    if isinstance(stored, list):
        return [unpack(item, get) for item in stored]
    if not isinstance(stored, dict):
        return stored
    if stored.keys() == {"$blob"}:
        return get(stored["$blob"]).decode("utf-8", "surrogatepass")
    if stored.keys() == {"$list"}:
        items = [unpack(link["item"], get) for link in links(stored["$list"], get)]
        items.reverse()
        return items
    if stored.keys() == {"$value"}:
        stored = stored["$value"]
    return {name: unpack(part, get) for name, part in stored.items()}


def links(digest: str | None, get: Callable[[str], bytes]) -> Iterator[dict[str, Any]]:
    """The links of a stored list, last first."""
    while digest is not None:
        link = _link(digest, get(digest))
        digest, length = link["parent"], link["length"]
        if (digest is None) != (length == 1):
            raise ProtocolError(f"the list above blob {digest} breaks off at length {length}")
        yield link


def _link(digest: str, content: bytes) -> dict[str, Any]:
    try:
        link: dict[str, Any] = msgspec.json.decode(content)
        _ = link["item"], link["parent"], link["length"]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise ProtocolError(f"blob {digest} is not a link of a list: {error}") from error
    return link
