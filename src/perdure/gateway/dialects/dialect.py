"""What a dialect is: a provider's API as the gateway knows it. Pure.

The bytes of requests and answers travel as they are. A dialect only reads them: for routing, for the log's readers, and
to tell a whole answer from one that broke off; and it words what the gateway itself has to say as its provider would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from perdure.gateway.events import Event


class MalformedError(ValueError):
    """Bytes that no SDK of this dialect can read."""


@dataclass(frozen=True)
class Request:
    """A request, read. ``parameters``: all that is neither model, stream nor messages."""

    model: str = ""  # "": it names none
    is_stream: bool = False
    messages: list[Any] = field(default_factory=list)
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """Tokens; 0 where nothing was told. ``input_tokens`` are all that were read, whatever the provider counts as such:
    of these ``cached_tokens`` came out of a cache, and ``cache_written_tokens`` were put into one."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_written_tokens: int = 0


@dataclass(frozen=True)
class Summary:
    """What an answer said and cost."""

    text: str = ""
    model: str = ""
    usage: Usage = Usage()
    stop_reason: str = ""
    tool_calls: tuple[Mapping[str, str], ...] = ()  # {"id", "name"} of each
    finished: bool = False  # it said that it is over
    error: str = ""  # what it said instead


class Reading(Protocol):
    """One stream, read event by event."""

    def take(self, event: Event) -> bool:
        """Whether the event ends the answer, well or badly: who sees it may go on from it. ``MalformedError``."""
        ...

    def summary(self) -> Summary:
        """Of what came until now."""
        ...


class Dialect(Protocol):
    """One API."""

    @property
    def name(self) -> str:
        """As the log and the settings have it."""
        ...

    @property
    def is_known(self) -> bool:
        """Whether what its answers look like is known: else anything that came whole is one."""
        ...

    def request(self, body: bytes) -> Request | str:
        """The request, or what is wrong with it."""
        ...

    def whole(self, body: bytes) -> Summary:
        """Of an answer that is no stream. ``error``: it is none."""
        ...

    def reading(self) -> Reading: ...

    def error_body(self, message: str, *, code: str, status: int) -> bytes:
        """An error in this API's own shape, which its SDKs raise. ``code`` is the house's own word for it."""
        ...

    def error_event(self, message: str, *, code: str, number: int = 0) -> bytes:
        """The same in the middle of a stream, after ``number`` events."""
        ...


def decoded(data: bytes) -> dict[str, Any]:
    """A JSON object. ``MalformedError``."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        value = _leniently(data, error)
    if not isinstance(value, dict):
        raise MalformedError(f"not a JSON object: {shown(data)}")
    return value


def _leniently(data: bytes, error: Exception) -> Any:
    """As SDKs read it: they take halves of surrogate pairs (an emoji that a server cut between two tokens), NaN and
    infinity. The log has "?" and null for these."""
    try:
        value = json.loads(data.decode(), parse_float=_finite, parse_constant=lambda name: None)
        return json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        raise MalformedError(f"not JSON ({error}): {shown(data)}") from None


def _finite(told: str) -> float | None:
    number = float(told)
    return number if math.isfinite(number) else None


def shown(data: bytes) -> str:
    """Its beginning, for a message."""
    return repr(data[:80].decode(errors="replace"))


def asked(body: bytes) -> dict[str, Any] | str:
    """The JSON object of a request, or what is wrong with it."""
    try:
        value = decoded(body)
    except MalformedError as error:
        return f"the request's body is {error}"
    if not isinstance(value.get("model") or "", str):
        return "the request's model is not a string"
    return value


def conversation(body: bytes) -> Request | str:
    """A request whose messages are its ``messages``."""
    value = asked(body)
    if isinstance(value, str):
        return value
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        return "the request has no messages"
    return as_request(value, messages, "messages")


def as_request(value: dict[str, Any], messages: list[Any], *also: str) -> Request:
    """also: names that are told as messages."""
    named = {"model", "stream", *also}
    rest = {name: part for name, part in value.items() if name not in named}
    return Request(value.get("model") or "", value.get("stream") is True, messages, rest)


def failed(error: Any) -> str:
    """What an error object of an answer says."""
    if isinstance(error, dict):
        kind = string(error.get("type")) or string(error.get("code"))
        message = string(error.get("message"))
        return ": ".join(part for part in (kind, message) if part) or "an error without a word"
    return string(error) or "an error without a word"


def table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def tables(value: Any) -> list[dict[str, Any]]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
