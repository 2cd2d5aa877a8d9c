"""Reading what a provider sent: text and token counts of a chat completion, whole or streamed. Pure.

The bytes themselves are kept and answered as they are; this only looks at them, for the log's readers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

DONE = b"data: [DONE]"  # the last event of a stream (OpenAI API reference, "Streaming")


@dataclass(frozen=True)
class Summary:
    """What a completion said and cost. Counts are 0 where the provider told none."""

    text: str = ""
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finished: bool = False  # a stream said that it is over: its [DONE], or a finish_reason


def summarize(body: bytes, *, stream: bool) -> Summary:
    """Summary of the raw bytes of an answer; empty for bytes that are no completion."""
    text: list[str] = []
    model = ""
    usage: dict[str, Any] = {}
    finished = not stream or b"\n" + DONE in body
    for value in _events(body) if stream else _whole(body):
        model = model or _string(value.get("model"))
        if isinstance(value.get("usage"), dict):
            usage = value["usage"]
        choices = value.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            finished = finished or bool(choices[0].get("finish_reason"))
            said = choices[0].get("delta" if stream else "message")
            if isinstance(said, dict):
                text.append(_string(said.get("content")))
    return Summary(
        text="".join(text),
        model=model,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        finished=finished,
    )


def _whole(body: bytes) -> Iterator[dict[str, Any]]:
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return
    if isinstance(value, dict):
        yield value


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.splitlines():
        if line.startswith(b"data:"):
            yield from _whole(line[5:].strip())


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def error_body(message: str, *, kind: str, code: str) -> bytes:
    """An error in the shape of the OpenAI API (every SDK reads it)."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


def error_event(message: str, *, kind: str, code: str) -> bytes:
    """The same in the middle of a stream: OpenAI's SDKs raise it at once. Ends an unfinished line first."""
    return b"\n\ndata: " + error_body(message, kind=kind, code=code) + b"\n\n"
