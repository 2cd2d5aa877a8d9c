"""Networks over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.model import Frozen, Network
from perdure.node.answers import body, ok


class _Create(Frozen, frozen=True, kw_only=True):
    name: str
    subnet: str = ""  # empty: the node finds one
    internal: bool = False
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class _Connect(Frozen, frozen=True, kw_only=True):
    sandbox: str
    aliases: list[str] = msgspec.field(default_factory=list)


class _Disconnect(Frozen, frozen=True, kw_only=True):
    sandbox: str


class NetworksApi:
    """Handlers."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    def routes(self) -> list[web.RouteDef]:
        one = "/v1/networks/{ref}"
        return [
            web.get("/v1/networks", self.list),
            web.post("/v1/networks", self.create),
            web.get(one, self.get),
            web.delete(one, self.remove),
            web.post(one + "/connect", self.connect),
            web.post(one + "/disconnect", self.disconnect),
        ]

    def _shown(self, network: Network) -> Any:
        fields = {name: getattr(network, name) for name in Network.__struct_fields__}
        return Network(**fields | {"members": self._sandboxes.members(network)})

    async def list(self, request: web.Request) -> web.Response:
        return ok([self._shown(network) for network in self._sandboxes.networks.all()])

    async def create(self, request: web.Request) -> web.Response:
        wish = await body(request, _Create)
        made = await asyncio.to_thread(
            self._sandboxes.networks.create,
            wish.name,
            subnet=wish.subnet,
            internal=wish.internal,
            labels=wish.labels,
        )
        return ok(self._shown(made), 201)

    async def get(self, request: web.Request) -> web.Response:
        return ok(self._shown(self._sandboxes.networks.find(request.match_info["ref"])))

    async def connect(self, request: web.Request) -> web.Response:
        wish = await body(request, _Connect)
        network = self._sandboxes.networks.find(request.match_info["ref"])
        await self._sandboxes.connect(network, wish.sandbox, wish.aliases)
        return ok()

    async def disconnect(self, request: web.Request) -> web.Response:
        wish = await body(request, _Disconnect)
        await self._sandboxes.disconnect(self._sandboxes.networks.find(request.match_info["ref"]), wish.sandbox)
        return ok()

    async def remove(self, request: web.Request) -> web.Response:
        networks = self._sandboxes.networks
        network = networks.find(request.match_info["ref"])
        networks.remove(network, self._sandboxes.members(network).keys())
        await self._sandboxes.forget_network(network)
        return ok()
