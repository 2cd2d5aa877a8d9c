"""Templates of a workload: a sandbox that was started, was waited for until it is ready, and sleeps ever since.

New sandboxes are forks of it, so what a start costs (interpreters, libraries, caches) is paid once. It is kept like any
sandbox, with the recipe that it was made by, and shown to nobody but ``fcrun template``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any

import msgspec

from perdure.errors import CommandNotExecutable, CommandNotFound, Conflict, InvalidValue, NotFound, PerdureError
from perdure.execution.sandboxes import mounts, names
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.host.progress import Progress
from perdure.model import ExecSpec, Fork, Recipe, SandboxState, TemplateInfo

ASK_AGAIN_S = 0.2

_log = logging.getLogger(__name__)


class WorkloadTemplates:
    """All templates of workloads of a node, by name."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes
        self._building: dict[str, asyncio.Lock] = {}

    async def list(self) -> list[TemplateInfo]:
        """By name."""
        current = await asyncio.to_thread(self._sandboxes.needs.templates_of_today)
        found = [self._info(sandbox, current) for sandbox in self._sandboxes.hidden()]
        return sorted(found, key=lambda template: template.name)

    async def build(self, recipe: Recipe, progress: Progress) -> TemplateInfo:
        """Make it, or make it anew; an old one stays until the new one is there.

        Raises InvalidValue, NotFound (the image), what ``prepare`` does.
        """
        names.check_name(recipe.name)
        if written := mounts.writes_volumes(recipe.spec):
            raise InvalidValue(
                f"a template cannot write volume {written[0]}: the sandboxes that are run from it would all do",
                hint="Mount it read-only (:ro).",
            )
        if not 0 < recipe.timeout_s < 86_400 or not 0 <= recipe.ready_after_s <= recipe.timeout_s:
            raise InvalidValue("a template is ready after 0 seconds or more, and before its timeout")
        async with self._building.setdefault(recipe.name, asyncio.Lock()):
            return self._info(await self._build(recipe, progress), None)

    async def run(self, name: str, wish: Fork, progress: Progress) -> Sandbox:
        """A new sandbox that goes on from where the template's workload is. One that is not fresh is built again first.

        Raises NotFound, Conflict (the sandbox's name).
        """
        async with self._building.setdefault(name, asyncio.Lock()):
            template = self._find(name)
            if not await self._is_fresh(template):
                assert template.record.recipe is not None
                template = await self._build(template.record.recipe, progress)
            assert template.record.parent is not None
            (fork,) = await self._sandboxes.fork_from(template.record.parent, [wish], log=template.folder.log)
            return fork

    async def remove(self, name: str) -> None:
        """Sandboxes that were made from it go on. Raises NotFound."""
        async with self._building.setdefault(name, asyncio.Lock()):
            await self._find(name).remove(force=True)

    async def _build(self, recipe: Recipe, progress: Progress) -> Sandbox:
        former = [sandbox for sandbox in self._sandboxes.hidden() if _recipe(sandbox).name == recipe.name]
        spec = msgspec.structs.replace(recipe.spec, name="", auto_remove=False, calls=None)
        async with self._sandboxes.with_volumes(spec) as spec:
            sandbox = self._sandboxes.create(spec, recipe=msgspec.structs.replace(recipe, spec=spec))
        try:
            await prepare(sandbox, recipe, progress)
        except BaseException:
            await sandbox.remove(force=True)
            raise
        for old in former:
            await old.remove(force=True)
        return sandbox

    def _find(self, name: str) -> Sandbox:
        found = [sandbox for sandbox in self._sandboxes.hidden() if _recipe(sandbox).name == name]
        if not found:
            raise NotFound(
                f"no such template: {name}", hint="`fcrun template ls` lists all, `template build` makes one."
            )
        return max(found, key=lambda sandbox: sandbox.record.created)

    async def _is_fresh(self, template: Sandbox) -> bool:
        """Whether it was made from what its parts are today, and can be resumed."""
        record = template.record
        if template.state is not SandboxState.SUSPENDED or record.parent is None:
            return False
        image, spec, ground = self._sandboxes.images.get(record.spec.image), record.spec, self._sandboxes.ground
        shape = mounts.shape_of(spec)
        launcher, base = await ground.stand(spec.vcpus, spec.memory_mib, volumes=shape)
        begins = await ground.with_image(launcher, base, image, spec.disk_mib, volumes=shape)
        return (image.digest, begins.name) == (record.image_digest, record.template)

    def _info(self, template: Sandbox, current: set[str] | None) -> TemplateInfo:
        """``current``: the templates below it that the next start may take, where that is known."""
        record = template.record
        try:
            image = self._sandboxes.images.get(record.spec.image).digest
        except NotFound:
            image = ""
        return TemplateInfo(
            name=_recipe(template).name,
            recipe=_recipe(template),
            image_digest=record.image_digest,
            base=record.template,
            created=record.created,
            stored_bytes=template.info().stored_bytes,
            snapshot=record.parent,
            fresh=image == record.image_digest and (current is None or record.template in current),
        )


def _recipe(sandbox: Sandbox) -> Recipe:
    assert sandbox.record.recipe is not None
    return sandbox.record.recipe


async def prepare(sandbox: Sandbox, recipe: Recipe, progress: Progress) -> None:
    """Start it, wait until it is ready, put it to sleep.

    Raises Conflict when its workload ends before, or is not ready in time, and what a start and a suspend do.
    """
    await sandbox.start(progress)
    progress("Waiting for the workload", 1, 3)
    try:
        async with asyncio.timeout(recipe.timeout_s):
            await _ready(sandbox, recipe)
    except TimeoutError:
        raise Conflict(
            f"the workload of template {recipe.name} was not ready within {recipe.timeout_s:g} s",
            hint="See --ready-log, --ready-cmd and --timeout of fcrun template build.",
        ) from None
    progress("Suspending", 2, 3)
    await sandbox.suspend()
    progress("Suspending", 3, 3)


async def _ready(sandbox: Sandbox, recipe: Recipe) -> None:
    ended = asyncio.create_task(sandbox.wait_exited())
    waits: list[Awaitable[None]] = [asyncio.sleep(recipe.ready_after_s)]
    if recipe.ready_log:
        waits.append(_said(sandbox, recipe.ready_log.encode()))
    if recipe.ready_command:
        waits.append(_succeeds(sandbox, recipe.ready_command))
    ready: asyncio.Future[list[None]] = asyncio.gather(*waits)
    try:
        first: set[asyncio.Future[Any]] = {ended, ready}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            return
        last = ended.result()
        raise Conflict(
            f"the workload of template {recipe.name} ended (exit status {last.exit_status}) before it was ready",
            hint="A template needs a workload that goes on running, such as a server.",
        )
    finally:
        for task in (ended, ready):
            task.cancel()
        await asyncio.gather(ended, ready, return_exceptions=True)


async def _said(sandbox: Sandbox, words: bytes) -> None:
    """Until the main process has written these words."""
    heard: dict[int, bytes] = {}
    async for record in sandbox.log.read(0, lambda: sandbox.state is SandboxState.RUNNING):
        text = heard[record.stream] = heard.get(record.stream, b"")[-len(words) :] + record.data
        if words in text:
            return
    await asyncio.Event().wait()  # it ended: who waits for that says so


async def _succeeds(sandbox: Sandbox, command: list[str]) -> None:
    """Until a command in the sandbox exits with 0."""
    while True:
        try:
            process = await sandbox.exec(ExecSpec(command=command))
            async for stream, offset, data in process.output():
                process.ack(stream, offset + len(data))
            status = await process.wait()
            process.release()
            if status == 0:
                return
        except (CommandNotFound, CommandNotExecutable):
            raise
        except PerdureError as error:
            _log.info("not ready yet: %s", error)
        await asyncio.sleep(ASK_AGAIN_S)
