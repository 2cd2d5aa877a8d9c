"""OpenAI's Chat Completions, which most servers of models speak. Pure.

A stream is ``data`` events alone, each a chunk; the usage comes in one of the last, ``[DONE]`` after all. An error in a
stream that began well is ``{"error": {...}}`` instead of a chunk. Facts: the types of OpenAI's Python SDK, 3.57.
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

DONE = b"[DONE]"
KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Chat:
    """The dialect."""

    name = "openai-chat"
    is_known = True

    def request(self, body: bytes) -> Request | str:
        return conversation(body)

    def whole(self, body: bytes) -> Summary:
        try:
            value = decoded(body)
        except MalformedError as error:
            return Summary(error=str(error))
        if value.get("error"):
            return Summary(error=failed(value["error"]))
        first = next(iter(tables(value.get("choices"))), None)
        if first is None:
            return Summary(error="it has no choices")
        message = table(first.get("message"))
        return Summary(
            text=string(message.get("content")),
            model=string(value.get("model")),
            usage=usage(value.get("usage")),
            stop_reason=string(first.get("finish_reason")),
            tool_calls=tuple(_call(call) for call in tables(message.get("tool_calls"))),
            finished=True,
        )

    def reading(self) -> Reading:
        return _Reading()

    def error_body(self, message: str, *, code: str, status: int) -> bytes:
        return msgspec.json.encode({"error": error(message, code=code, status=status)})

    def error_event(self, message: str, *, code: str, number: int = 0) -> bytes:
        return event(self.error_body(message, code=code, status=502))


class _Reading:
    def __init__(self) -> None:
        self._text: list[str] = []
        self._model = ""
        self._usage: Any = None
        self._stop_reason = ""
        self._calls: dict[Any, dict[str, str]] = {}  # by their index
        self._speaking: set[Any] = set()  # choices, by their index
        self._has_spoken = self._is_done = False
        self._error = ""

    def take(self, event: Event) -> bool:
        if event.data.startswith(DONE):
            self._is_done = True
            return True
        if not event.data:
            return False
        value = decoded(event.data)
        if value.get("error"):
            self._error = failed(value["error"])
            return True
        self._model = self._model or string(value.get("model"))
        self._usage = value.get("usage") or self._usage
        for choice in tables(value.get("choices")):
            self._choice(choice)
        return False

    def _choice(self, choice: dict[str, Any]) -> None:
        index, reason, delta = count(choice.get("index")), choice.get("finish_reason"), table(choice.get("delta"))
        if reason:
            self._has_spoken = True
            self._speaking.discard(index)
        else:
            self._speaking.add(index)
        if index:
            return  # of several answers the first one is shown
        self._stop_reason = string(reason) or self._stop_reason
        self._text.append(string(delta.get("content")))
        for call in tables(delta.get("tool_calls")):
            if string(call.get("id")):
                self._calls.setdefault(count(call.get("index")), _call(call))

    def summary(self) -> Summary:
        return Summary(
            text="".join(self._text),
            model=self._model,
            usage=usage(self._usage),
            stop_reason=self._stop_reason,
            tool_calls=tuple(self._calls.values()),
            finished=self._is_done or (self._has_spoken and not self._speaking),  # not all servers send [DONE]
            error=self._error,
        )


def usage(told: Any) -> Usage:
    """Of the API's two ways to count: that of completions and embeddings, and that of responses."""
    told = table(told)
    details = table(told.get("prompt_tokens_details")) or table(told.get("input_tokens_details"))
    return Usage(
        input_tokens=count(told.get("prompt_tokens")) or count(told.get("input_tokens")),
        output_tokens=count(told.get("completion_tokens")) or count(told.get("output_tokens")),
        cached_tokens=count(details.get("cached_tokens")),
        cache_written_tokens=count(details.get("cache_write_tokens")),
    )


def error(message: str, *, code: str, status: int) -> dict[str, Any]:
    """The API's error object."""
    kind = KINDS.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return {"message": message, "type": kind, "param": None, "code": code}


def _call(call: dict[str, Any]) -> dict[str, str]:
    named = table(call.get("function")) or table(call.get("custom"))
    return {"id": string(call.get("id")), "name": string(named.get("name"))}
