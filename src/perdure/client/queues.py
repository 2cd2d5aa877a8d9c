"""The client of a server's queues (``ServerClient.queues``)."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from perdure.client.transport import Transport

_Queues = list[dict[str, Any]]  # QueuesClient.list hides the builtin inside the class


class QueuesClient:
    """A queue is a dict: ``name``, ``concurrency``, ``key_concurrency``, ``rate``, ``period_s``, ``paused``,
    ``created``; ``waiting`` and ``active`` are numbers of runs, ``next`` the ids of those that wait."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def list(self) -> _Queues:
        """By name."""
        found: _Queues = self._http.call("GET", "/v1/queues")["queues"]
        return found

    def get(self, name: str) -> dict[str, Any]:
        """``NotFound``."""
        return self._queue("GET", name)

    def create(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        key_concurrency: int | None = None,
        rate: int | None = None,
        period_s: float = 1.0,
        paused: bool = False,
    ) -> dict[str, Any]:
        """None: no such limit. ``Conflict`` where there is one of this name."""
        body = {"name": name, "concurrency": concurrency, "key_concurrency": key_concurrency, "rate": rate}
        made = self._http.call("POST", "/v1/queues", json_body={**body, "period_s": period_s, "paused": paused})
        queue: dict[str, Any] = made
        return queue

    def change(self, name: str, **fields: Any) -> dict[str, Any]:
        """Replace some fields; None: no such limit."""
        return self._queue("PATCH", name, fields)

    def remove(self, name: str) -> None:
        """``Conflict`` while runs wait in it."""
        self._queue("DELETE", name)

    def _queue(self, method: str, name: str, fields: dict[str, Any] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = self._http.call(method, f"/v1/queues/{quote(name, safe='')}", json_body=fields)
        return found
