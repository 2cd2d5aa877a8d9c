"""The part of the node's API that moves images between its library and registries."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from perdure.errors import NoRights
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.formats.references import HUB, HUB_API, Reference, parse
from perdure.host import headroom
from perdure.host.paths import Home
from perdure.host.progress import Progress
from perdure.model import Frozen
from perdure.node.answers import body, long, ok

if TYPE_CHECKING:
    from perdure.execution.registry.repository import Repository

AT_ONCE = 4  # others wait for one to end; each has threads of its own for what it reads

T = TypeVar("T")


class _Way(Frozen, frozen=True, kw_only=True):
    """How a registry is reached."""

    login: tuple[str, str] | None = None  # user and password; null: what the node's own user has kept for it
    tls_verify: bool = True


class _Pull(_Way, frozen=True, kw_only=True):
    name: str
    platform: str = ""


class _Push(_Way, frozen=True, kw_only=True):
    name: str
    all_tags: bool = False


class _Login(_Way, frozen=True, kw_only=True):
    host: str


class Registries:
    """Handlers."""

    def __init__(self, home: Home, sandboxes: Sandboxes) -> None:
        self._home = home
        self._sandboxes = sandboxes
        # They wait for other machines, for minutes where these stall: the loop's own threads are everybody's.
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="registry")

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.post("/v1/images/pull", self.pull),
            web.post("/v1/images/push", self.push),
            web.post("/v1/images/sweep", self.sweep),
            web.post("/v1/registries/login", self.login),
        ]

    async def pull(self, request: web.Request) -> web.StreamResponse:
        wish = await body(request, _Pull)
        return await long(request, lambda progress: self._pulled(wish, progress))

    async def bring(self, name: str, progress: Progress) -> None:
        """Pull an image, as the node's own user."""
        await self._pulled(_Pull(name=name), progress)

    async def _pulled(self, wish: _Pull, progress: Progress) -> Any:
        reference = parse(wish.name)

        def work() -> Any:
            from perdure.execution.images import pulling

            with _opened(reference, wish) as repository:
                library = self._sandboxes.images
                return pulling.pull(library, repository, reference, platform=wish.platform, progress=progress)

        pulled = await self._threaded(work)
        self._sandboxes.tell("image.pulled", name=pulled.name, digest=pulled.image)
        return pulled

    async def push(self, request: web.Request) -> web.StreamResponse:
        wish = await body(request, _Push)
        reference = parse(wish.name)

        def work(progress: Progress) -> Any:
            from perdure.execution.images import pushing

            with _opened(reference, wish) as repository:
                library = self._sandboxes.images
                return pushing.push(library, repository, reference, all_tags=wish.all_tags, progress=progress)

        async def whole(progress: Progress) -> Any:
            pushed = await self._threaded(lambda: work(progress))
            for one in pushed:
                self._sandboxes.tell("image.pushed", name=one.name, digest=one.digest)
            return pushed

        return await long(request, whole)

    async def sweep(self, request: web.Request) -> web.Response:
        """Give up what came of images whose pull broke, so that nothing could go on with it."""
        with headroom.given(self._home):
            await asyncio.to_thread(lambda: self._sandboxes.images.sweep(every=True))
        return ok()

    async def login(self, request: web.Request) -> web.Response:
        """Whether a registry takes a user's password. Nothing is kept here."""
        wish = await body(request, _Login)
        reference = parse(f"{wish.host}/library/any")

        def work() -> None:
            with _opened(reference, wish) as repository:
                try:
                    repository.check_login()
                except NoRights as error:
                    raise NoRights(error.message, hint="Look at the user name and the password.") from None

        await self._threaded(work)
        return ok()

    async def _threaded(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


@contextlib.contextmanager
def _opened(reference: Reference, way: _Way) -> Iterator[Repository]:
    """The repository of an image. Its library is imported here, where a registry is wanted."""
    from perdure.execution.registry.reaching import opened

    repository = opened(
        HUB_API if reference.host == HUB else reference.host,
        reference.path,
        url=reference.place,
        verify=way.tls_verify,
        login=way.login,
        account=reference.account,
    )
    try:
        yield repository
    finally:
        repository.close()
