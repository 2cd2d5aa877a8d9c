"""OpenAI's Responses. Pure.

A stream's events have names, and the same again as ``type``. The last one is ``response.completed``,
``response.incomplete`` (it came to a limit: an answer, too) or ``response.failed``, with the whole response and its
usage. Facts: the types of OpenAI's Python SDK, 3.57.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.gateway.dialects import chat
from perdure.gateway.dialects.dialect import (
    MalformedError,
    Reading,
    Request,
    Summary,
    as_request,
    asked,
    decoded,
    failed,
    string,
    table,
    tables,
)
from perdure.gateway.events import Event, event

ENDS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
CALLS = ("function_call", "custom_tool_call")


class Responses:
    """The dialect."""

    name = "openai-responses"
    is_known = True

    def request(self, body: bytes) -> Request | str:
        value = asked(body)
        if isinstance(value, str):
            return value
        said = value.get("input")
        if isinstance(said, str):
            said = [{"role": "user", "content": said}]
        if said is not None and not isinstance(said, list):
            return "the request's input is neither a string nor a list"
        return as_request(value, said or [], "input")  # without one it may go on from an earlier response

    def whole(self, body: bytes) -> Summary:
        try:
            value = decoded(body)
        except MalformedError as error:
            return Summary(error=str(error))
        if value.get("error") and value.get("status") != "failed":
            return Summary(error=failed(value["error"]))
        if value.get("object") != "response" and not isinstance(value.get("output"), list):
            return Summary(error="it is no response")
        return _response(value)  # a failed one is an answer as any: the SDK hands it over

    def reading(self) -> Reading:
        return _Reading()

    def error_body(self, message: str, *, code: str, status: int) -> bytes:
        return msgspec.json.encode({"error": chat.error(message, code=code, status=status)})

    def error_event(self, message: str, *, code: str, number: int = 0) -> bytes:
        """With the fields of the API's ``error`` event, and an ``error`` object: that is what its SDK raises."""
        error = chat.error(message, code=code, status=502)
        told = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": number}
        return event(msgspec.json.encode({**told, "error": error}), "error")


class _Reading:
    def __init__(self) -> None:
        self._text: list[str] = []
        self._response: dict[str, Any] = {}
        self._is_over = False
        self._error = ""

    def take(self, event: Event) -> bool:
        if not event.data or event.data.startswith(chat.DONE):
            return False
        value = decoded(event.data)
        kind = string(value.get("type")) or event.name
        if kind == "error" or value.get("error"):
            self._error = failed(value.get("error") or {**value, "type": value.get("code")})
            return True
        if kind == "response.output_text.delta":
            self._text.append(string(value.get("delta")))
        self._response = table(value.get("response")) or self._response
        if kind == "response.failed":
            self._error = failed(self._response.get("error"))
        self._is_over = self._is_over or kind in ENDS
        return kind in ENDS

    def summary(self) -> Summary:
        found = _response(self._response)
        return Summary(
            text=found.text or "".join(self._text),
            model=found.model,
            usage=found.usage,
            stop_reason=found.stop_reason if self._is_over else "",
            tool_calls=found.tool_calls,
            finished=self._is_over,
            error=self._error,
        )


def _response(value: dict[str, Any]) -> Summary:
    output = tables(value.get("output"))
    parts = [part for item in output for part in tables(item.get("content"))]
    details = table(value.get("incomplete_details"))
    return Summary(
        text="".join(string(part.get("text")) for part in parts if part.get("type") == "output_text"),
        model=string(value.get("model")),
        usage=chat.usage(value.get("usage")),
        stop_reason=string(details.get("reason")) or string(value.get("status")),
        tool_calls=tuple(
            {"id": string(item.get("call_id")), "name": string(item.get("name"))}
            for item in output
            if item.get("type") in CALLS
        ),
        finished=True,
    )
