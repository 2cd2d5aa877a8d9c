"""The client of a server's schedules (``ServerClient.schedules``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from perdure.client.source import completed
from perdure.client.transport import Transport
from perdure.model import RunInfo

_Schedules = list[dict[str, Any]]  # SchedulesClient.list hides the builtin inside the class


class SchedulesClient:
    """A schedule is a dict: what it was made with, ``done`` (the last moment), ``last_run``, ``error``, ``next``."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def list(self) -> _Schedules:
        """By name."""
        found: _Schedules = self._http.call("GET", "/v1/schedules")["schedules"]
        return found

    def get(self, name: str) -> dict[str, Any]:
        """``NotFound``."""
        return self._schedule("GET", name)

    def create(
        self,
        name: str,
        request: Mapping[str, Any],
        *,
        cron: str = "",
        zone: str = "UTC",
        every_s: float | None = None,
        jitter_s: float = 0.0,
        catch_up: str = "last",
        catch_up_max: int = 10,
        paused: bool = False,
    ) -> dict[str, Any]:
        """``request``: the fields of a ``StartRequest``, and for what they leave out ``@agent``, as with
        ``ServerClient.start``. Either ``cron`` (in
        ``zone``) or ``every_s``. catch_up: what is started for moments that were missed: none, last or all."""
        body = {"name": name, "request": completed(request), "cron": cron, "zone": zone, "every_s": every_s}
        body |= {"jitter_s": jitter_s, "catch_up": catch_up, "catch_up_max": catch_up_max, "paused": paused}
        made: dict[str, Any] = self._http.call("POST", "/v1/schedules", json_body=body)
        return made

    def pause(self, name: str) -> dict[str, Any]:
        return self._schedule("POST", name, "/pause")

    def resume(self, name: str) -> dict[str, Any]:
        """From now on: a pause is no time that is caught up with."""
        return self._schedule("POST", name, "/resume")

    def run(self, name: str) -> RunInfo:
        """Start a run of it now, beside what is due."""
        return msgspec.convert(self._schedule("POST", name, "/run"), RunInfo)

    def remove(self, name: str) -> None:
        """Its runs go on."""
        self._schedule("DELETE", name)

    def _schedule(self, method: str, name: str, act: str = "") -> dict[str, Any]:
        found: dict[str, Any] = self._http.call(method, f"/v1/schedules/{quote(name, safe='')}{act}")
        return found
