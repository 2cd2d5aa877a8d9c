"""The networks of a node, over HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote

import msgspec

from perdure.client.transport import Transport
from perdure.model import Network

_Networks = list[Network]  # NetworksClient.list hides the builtin inside the class


class NetworksClient:
    """Each method raises the errors of ``perdure.errors``, as the node raised them."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def list(self) -> _Networks:
        """All, oldest first, with their members."""
        return msgspec.convert(self._http.call("GET", "/v1/networks"), _Networks)

    def get(self, ref: str) -> Network:
        """By name, id, or a unique beginning of an id. Raises NotFound, Conflict."""
        return msgspec.convert(self._http.call("GET", f"/v1/networks/{quote(ref, safe='')}"), Network)

    def create(
        self, name: str, *, subnet: str = "", internal: bool = False, labels: Mapping[str, str] | None = None
    ) -> Network:
        """Raises InvalidValue, Conflict (the name, the subnet)."""
        wish = {"name": name, "subnet": subnet, "internal": internal, "labels": dict(labels or {})}
        return msgspec.convert(self._http.call("POST", "/v1/networks", json_body=wish), Network)

    def connect(self, network: str, ref: str, aliases: Iterable[str] = ()) -> None:
        """Put a sandbox into one more network, also while it runs. Raises Conflict: it is in it."""
        wish = {"sandbox": ref, "aliases": [*aliases]}
        self._http.call("POST", f"/v1/networks/{quote(network, safe='')}/connect", json_body=wish)

    def disconnect(self, network: str, ref: str) -> None:
        """Take a sandbox out of a network. Raises NotFound: it is not in it."""
        self._http.call("POST", f"/v1/networks/{quote(network, safe='')}/disconnect", json_body={"sandbox": ref})

    def remove(self, ref: str) -> None:
        """Raises NotFound, Conflict (sandboxes are in it)."""
        self._http.call("DELETE", f"/v1/networks/{quote(ref, safe='')}")
