"""Packs are made before the run that has them: what is wrong with one is said while nothing was begun."""

from __future__ import annotations

from perdure.context.log import ContextLog
from perdure.errors import Unsupported
from perdure.formats import scriptblock
from perdure.runs import keys, pack
from perdure.runs.clock import Clock
from perdure.runs.ports import Packages, Progress
from perdure.runs.record import Record, StartRequest, from_head


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


class Packs:
    """``packages``: put there before the engine's ``open``; None: this server gets none."""

    def __init__(self, context: ContextLog, clock: Clock) -> None:
        self._context = context
        self._clock = clock
        self.packages: Packages | None = None

    async def of(self, request: StartRequest, progress: Progress = silent) -> str | None:
        """The digest of the pack that a run of this request has; None: its file is all. Packages are chosen here, once
        for all, unless the request names a pack that has them. AgentInvalid, NotFound, Unavailable … say why not."""
        found = await pack.read(self._context, request.pack)
        if request.modules:
            modules = await pack.keep_all(self._context, request.modules)
            found = pack.Pack(modules=modules, wheels=found.wheels, python=found.python)
        needs = scriptblock.read(request.source, request.file)
        if needs.packages and not found.wheels:
            if self.packages is None:
                raise Unsupported("this server brings no packages", hint="Put them into the image.")
            if older := await self._older(request):
                return older.pack
            python, wheels = await self.packages.resolve(needs, request.image, progress)
            found = pack.Pack(modules=found.modules, wheels=wheels, python=python)
        return await self._context.put_blob(found.encoded()) if found else None

    async def _older(self, request: StartRequest) -> Record | None:
        """The run that this key gives instead of a new one: it has its packages, whatever the index has by now."""
        key = keys.scoped(request)
        head = None if key is None else await self._context.head_of_key(key)
        if head is None or head.pruned:  # whose packages may have gone
            return None
        record = from_head(head)
        return None if keys.is_over(record.request, head.created, self._clock.time()) else record
