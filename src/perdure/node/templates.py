"""The part of the node's API that is about templates of workloads."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from perdure.execution.sandboxes.prestarting import WorkloadTemplates
from perdure.host.progress import Progress
from perdure.model import Fork, Recipe
from perdure.node.answers import body, long, ok


class TemplatesApi:
    """Handlers."""

    def __init__(self, templates: WorkloadTemplates) -> None:
        self._templates = templates

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/templates", self.list),
            web.post("/v1/templates", self.build),
            web.post("/v1/templates/{name}/run", self.run),
            web.delete("/v1/templates/{name}", self.remove),
        ]

    async def list(self, request: web.Request) -> web.Response:
        return ok(await self._templates.list())

    async def build(self, request: web.Request) -> web.StreamResponse:
        recipe = await body(request, Recipe)
        return await long(request, lambda progress: self._templates.build(recipe, progress), 201)

    async def run(self, request: web.Request) -> web.StreamResponse:
        name, wish = request.match_info["name"], await body(request, Fork)

        async def work(progress: Progress) -> Any:
            return (await self._templates.run(name, wish, progress)).info()

        return await long(request, work, 201)

    async def remove(self, request: web.Request) -> web.Response:
        await self._templates.remove(request.match_info["name"])
        return ok()
