"""The client of a node's border: its tokens, and its audit (``NodeClient.border``)."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import msgspec

from perdure.client.transport import Transport
from perdure.model import AuditEntry, TokenInfo

_Tokens = list[TokenInfo]


class BorderClient:
    """Only who may do everything may ask."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def tokens(self) -> _Tokens:
        """Newest first."""
        return msgspec.convert(self._http.call("GET", "/v1/tokens"), _Tokens)

    def create_token(
        self, *, name: str = "", scope: str = "own", expires_s: float | None = None
    ) -> tuple[TokenInfo, str]:
        """A new one, and its text, which is told only now."""
        wish = {"name": name, "scope": scope, "expires_s": expires_s}
        answer = self._http.call("POST", "/v1/tokens", json_body=wish)
        return msgspec.convert(answer, TokenInfo), str(answer["token"])

    def renew_token(self, ref: str, *, expires_s: float | None = None) -> tuple[TokenInfo, str]:
        """Another text for a token, which keeps its sandboxes; the former is good for nothing from now on."""
        path = f"/v1/tokens/{quote(ref, safe='')}/renew"
        answer = self._http.call("POST", path, json_body={"expires_s": expires_s})
        return msgspec.convert(answer, TokenInfo), str(answer["token"])

    def remove_token(self, ref: str) -> TokenInfo:
        """By id or name. What it has open ends; its sandboxes stay."""
        return msgspec.convert(self._http.call("DELETE", f"/v1/tokens/{quote(ref, safe='')}"), TokenInfo)

    def audit(self, *, since: float | None = None, follow: bool = False) -> Iterator[AuditEntry]:
        """Oldest first. since: seconds since the epoch. follow: also those to come."""
        query = {"since": since, "follow": int(follow)}
        with self._http.open("GET", "/v1/system/audit", query=query) as answer:
            for line in answer.lines():
                yield msgspec.convert(line, AuditEntry)
