"""The client of a node's volumes (``NodeClient.volumes``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote

import msgspec

from perdure.client.transport import Transport
from perdure.model import VolumeInfo

_Volumes = list[VolumeInfo]  # VolumesClient.list hides the builtin inside the class
_Names = list[str]


class VolumesClient:
    def __init__(self, http: Transport) -> None:
        self._http = http

    def list(self) -> _Volumes:
        """By name."""
        return msgspec.convert(self._http.call("GET", "/v1/volumes"), _Volumes)

    def get(self, name: str) -> VolumeInfo:
        return msgspec.convert(self._http.call("GET", _path(name)), VolumeInfo)

    def create(
        self, name: str = "", *, size_mib: int | None = None, labels: Mapping[str, str] | None = None
    ) -> VolumeInfo:
        """One that is there is taken as it is, unless another size is wished for. No name: one is drawn."""
        body = {"name": name, "size_mib": size_mib, "labels": dict(labels or {})}
        return msgspec.convert(self._http.call("POST", "/v1/volumes", json_body=body), VolumeInfo)

    def remove(self, name: str) -> None:
        """Raises Conflict where it belongs to a sandbox."""
        self._http.call("DELETE", _path(name))

    def prune(self, names: Iterable[str]) -> _Names:
        """Remove those of them that no sandbox has; their names."""
        return msgspec.convert(self._http.call("POST", "/v1/volumes/prune", json_body={"names": [*names]}), _Names)


def _path(name: str) -> str:
    return f"/v1/volumes/{quote(name, safe='')}"
