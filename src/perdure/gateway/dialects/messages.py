"""Anthropic's Messages. Pure.

A stream's events have names, and the same again as ``type``: ``message_start``, then of each block of content
``content_block_start``, ``content_block_delta`` … and ``content_block_stop``, then ``message_delta`` with the reason
why it stopped, and ``message_stop``. ``ping`` stands anywhere, and so does what is new tomorrow. The counts in
``message_delta`` are of the whole message (cumulative: the last one counts). An error in a stream that began well is
an event ``error``. Facts: the types of Anthropic's Python SDK, 2.14.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.gateway.dialects.dialect import (
    MalformedError,
    Reading,
    Request,
    Summary,
    Usage,
    conversation,
    count,
    decoded,
    failed,
    string,
    table,
    tables,
)
from perdure.gateway.events import Event, event

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
CALLS = ("tool_use", "server_tool_use", "mcp_tool_use")


class Messages:
    """The dialect."""

    name = "anthropic-messages"
    is_known = True

    def request(self, body: bytes) -> Request | str:
        return conversation(body)

    def whole(self, body: bytes) -> Summary:
        try:
            value = decoded(body)
        except MalformedError as error:
            return Summary(error=str(error))
        if value.get("type") == "error" or value.get("error"):
            return Summary(error=failed(value.get("error")))
        if not isinstance(value.get("content"), list):
            return Summary(error="it is no message")
        blocks = tables(value["content"])
        return Summary(
            text="".join(string(block.get("text")) for block in blocks if block.get("type") == "text"),
            model=string(value.get("model")),
            usage=_usage(table(value.get("usage"))),
            stop_reason=string(value.get("stop_reason")),
            tool_calls=tuple(_call(block) for block in blocks if block.get("type") in CALLS),
            finished=True,
        )

    def reading(self) -> Reading:
        return _Reading()

    def error_body(self, message: str, *, code: str, status: int) -> bytes:
        kind = KINDS.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
        error = {"type": kind, "message": message, "code": code}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": None})

    def error_event(self, message: str, *, code: str, number: int = 0) -> bytes:
        return event(self.error_body(message, code=code, status=502), "error")


class _Reading:
    def __init__(self) -> None:
        self._text: list[str] = []
        self._model = self._stop_reason = self._error = ""
        self._usage: dict[str, Any] = {}
        self._calls: list[dict[str, str]] = []
        self._is_over = False

    def take(self, event: Event) -> bool:
        if not event.name or not event.data:
            return False  # its SDK passes over these, too
        if event.name == "ping":
            return False
        value = decoded(event.data)
        match event.name:
            case "message_start":
                message = table(value.get("message"))
                self._model = string(message.get("model"))
                self._count(message)
            case "content_block_start":
                block = table(value.get("content_block"))
                self._text.append(string(block.get("text")))
                if block.get("type") in CALLS:
                    self._calls.append(_call(block))
            case "content_block_delta":
                delta = table(value.get("delta"))
                if delta.get("type") == "text_delta":
                    self._text.append(string(delta.get("text")))
            case "message_delta":
                self._stop_reason = string(table(value.get("delta")).get("stop_reason")) or self._stop_reason
                self._count(value)
            case "message_stop":
                self._is_over = True
                return True
            case "error":
                self._error = failed(value.get("error"))
                return True
        return False

    def _count(self, value: dict[str, Any]) -> None:
        told = table(value.get("usage"))
        self._usage |= {name: number for name, number in told.items() if number is not None}

    def summary(self) -> Summary:
        return Summary(
            text="".join(self._text),
            model=self._model,
            usage=_usage(self._usage),
            stop_reason=self._stop_reason,
            tool_calls=tuple(self._calls),
            finished=self._is_over,
            error=self._error,
        )


def _usage(told: dict[str, Any]) -> Usage:
    """Here ``input_tokens`` are only those that no cache had a part in."""
    cached, written = count(told.get("cache_read_input_tokens")), count(told.get("cache_creation_input_tokens"))
    return Usage(
        input_tokens=count(told.get("input_tokens")) + cached + written,
        output_tokens=count(told.get("output_tokens")),
        cached_tokens=cached,
        cache_written_tokens=written,
    )


def _call(block: dict[str, Any]) -> dict[str, str]:
    return {"id": string(block.get("id")), "name": string(block.get("name"))}
