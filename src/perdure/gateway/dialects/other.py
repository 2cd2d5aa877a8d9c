"""What else a provider has under ``/v1/``: embeddings, counts of tokens, old completions, files … Pure.

Nothing is known of the bodies: what came whole is the answer, recorded and answered again like any other.
"""

from __future__ import annotations

from typing import Any

from perdure.gateway.dialects import chat
from perdure.gateway.dialects.dialect import Dialect, MalformedError, Reading, Request, Summary, decoded, failed, string
from perdure.gateway.events import Event


class Other:
    """The rest of the API that ``like`` is a part of: errors are worded as there."""

    is_known = False

    def __init__(self, name: str, like: Dialect) -> None:
        self.name = name
        self._like = like

    def request(self, body: bytes) -> Request | str:
        try:
            value = decoded(body)
        except MalformedError:
            return Request()
        rest = {name: part for name, part in value.items() if name not in ("model", "stream")}
        return Request(string(value.get("model")), value.get("stream") is True, [], rest)

    def whole(self, body: bytes) -> Summary:
        try:
            value = decoded(body)
        except MalformedError:
            return Summary(finished=True)
        return Summary(model=string(value.get("model")), usage=chat.usage(value.get("usage")), finished=True)

    def reading(self) -> Reading:
        return _Reading()

    def error_body(self, message: str, *, code: str, status: int) -> bytes:
        return self._like.error_body(message, code=code, status=status)

    def error_event(self, message: str, *, code: str, number: int = 0) -> bytes:
        return self._like.error_event(message, code=code, number=number)


class _Reading:
    def __init__(self) -> None:
        self._model = self._error = ""
        self._usage: Any = None

    def take(self, event: Event) -> bool:
        if event.data.startswith(chat.DONE):
            return True
        try:
            value = decoded(event.data)
        except MalformedError:
            return False
        if event.name == "error" or value.get("error"):
            self._error = failed(value.get("error") or value)
        self._model = self._model or string(value.get("model"))
        self._usage = value.get("usage") or self._usage
        return bool(self._error)

    def summary(self) -> Summary:
        return Summary(model=self._model, usage=chat.usage(self._usage), finished=True, error=self._error)
