"""A chat completion from the bytes of its answer, whole or streamed. Pure."""

from __future__ import annotations

import json

from perdure.agent.calls import CANCELLED
from perdure.agent.values import Cancelled, Turn
from perdure.errors import InvalidValue, OverBudget, ProtocolError, ProviderFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

PATH = "/v1/chat/completions"
LOST = "stream-lost"  # the gateway's code for a stream that died with a server: ask again


class StreamLostError(ConnectionError):
    """The stream's rest exists nowhere any more; the same call gets a new answer."""


def request(messages: Any, model: str | None, stream: bool, parameters: dict[str, Any]) -> bytes:
    """The body of a request. ``messages``: a list of messages, or a string for one of the user's."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body = {"messages": messages, **parameters}
    if model:
        body["model"] = model
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    try:
        return json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"ctx.chat: the messages are not JSON: {error}") from None


class Retelling:
    """Skips what was already told of an answer that is told again from its start."""

    def __init__(self, told: str) -> None:
        self._left = told

    def fresh(self, text: str) -> str:
        """The part of ``text`` that is new. ``ProviderFailed`` when the answer is now another one."""
        known = min(len(self._left), len(text))
        if text[:known] != self._left[:known]:
            raise ProviderFailed(
                "a streamed answer was lost with the server, and the model now says something else",
                hint="catch this and start the turn over, or use ctx.chat without on_delta",
            )
        self._left = self._left[known:]
        return text[known:]


class Completion:
    """Feed it the body's pieces; it yields the text as it comes, and has the turn at the end."""

    def __init__(self, stream: bool) -> None:
        self._is_stream = stream
        self._rest = b""
        self._message: dict[str, Any] = {"role": "assistant", "content": ""}
        self._calls: list[dict[str, Any]] = []
        self._usage: dict[str, Any] = {}
        self._model = ""
        self._finish = ""
        self._is_done = False
        self._half = ""  # of a character, whose other half is in the next piece

    def expect(self, status: int) -> None:
        """An answer whose ``status`` is an error is no stream, whatever was asked for."""
        if status >= 400:
            self._is_stream = False

    def feed(self, piece: bytes) -> Iterator[str]:
        """Raises ``ProviderFailed`` for an error in the stream, ``StreamLostError`` where it is to be asked again."""
        self._rest += piece
        if not self._is_stream:
            return
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            data = line[5:].strip() if line.startswith(b"data:") else b""
            if data == b"[DONE]":
                self._is_done = True
            elif data:
                yield from self._event(_decoded(data))

    def turn(self, status: int, tools: dict[str, Any] | None = None) -> Turn:
        """The whole answer, when the body has ended. Raises ``ProviderFailed`` for a ``status`` that is an error.

        tools: the functions that the model was told of, by name.
        """
        if not self._is_stream:
            value = _decoded(self._rest)
            if status >= 400 or value.get("error"):
                raise failure(status, value)
            self._take(value)
            self._message = _first(value).get("message") or self._message
            self._finish = _first(value).get("finish_reason") or ""
        elif not self._is_done and not self._finish:
            raise ProviderFailed("the model's stream ended before the answer was complete")
        if self._calls:
            self._message["tool_calls"] = self._calls
        content = self._message.get("content")
        if isinstance(content, str):
            content = self._message["content"] = _joined(content + self._half)
        return Turn(
            content or "",
            self._message,
            model=self._model,
            finish_reason=self._finish,
            prompt_tokens=self._usage.get("prompt_tokens") or 0,
            completion_tokens=self._usage.get("completion_tokens") or 0,
            tools=tools,
        )

    def _take(self, value: dict[str, Any]) -> None:
        self._model = value.get("model") or self._model
        self._usage = value.get("usage") or self._usage

    def _event(self, value: dict[str, Any]) -> Iterator[str]:
        if value.get("error"):
            raise failure(502, value)
        self._take(value)
        choice = _first(value)
        self._finish = choice.get("finish_reason") or self._finish
        delta = choice.get("delta") or {}
        for part in delta.get("tool_calls") or []:
            self._add_call(part)
        text = self._half + (delta.get("content") or "")
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        if text := _joined(text[: len(text) - len(self._half)]):
            self._message["content"] += text
            yield text

    def _add_call(self, part: dict[str, Any]) -> None:
        """A piece of a tool call: the first names it, later ones lengthen its arguments."""
        index = part.get("index", 0)
        while len(self._calls) <= index:
            self._calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call = self._calls[index]
        call["id"] = part.get("id") or call["id"]
        for name, text in (part.get("function") or {}).items():
            call["function"][name] = call["function"].get(name, "") + (text or "")


def failure(status: int, value: Any) -> Exception:
    """The error that an answer in OpenAI's error shape stands for."""
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return ProviderFailed(f"the model provider answered {status}")
    if error.get("code") == CANCELLED:
        raise Cancelled(error.get("message", ""))
    if error.get("code") == LOST:
        return StreamLostError(error.get("message", ""))
    if error.get("code") == OverBudget.code:
        return OverBudget(error.get("message", ""))
    message = f"the model provider answered {status}: {error.get('message')}"
    return ProviderFailed(message, status=status, code=error.get("code"))


def _first(value: dict[str, Any]) -> dict[str, Any]:
    choices = value.get("choices") or [{}]
    return choices[0] if isinstance(choices[0], dict) else {}


def _joined(text: str) -> str:
    """Characters that a server cut in two are whole; a half without the other is none, and no JSON either."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        raise ProtocolError(f"a model's answer is not JSON: {data[:80]!r}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"a model's answer is not a JSON object: {data[:80]!r}")
    return value
