"""What the sandboxes of a node need of its store: snapshots, also by what they were called before, and templates."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping

from perdure.errors import NoSpace, NotFound, PerdureError
from perdure.execution.images.library import ImageLibrary
from perdure.execution.sandboxes import acting
from perdure.execution.sandboxes.ground import Ground
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.snapshots import transfer
from perdure.execution.snapshots.store import Store
from perdure.formats.manifest import Snapshot
from perdure.host import headroom
from perdure.host.paths import Home

READ_S, READ_MAX_S = 0.5, 30.0  # between two looks whether a snapshot is read: a push may take hours

_log = logging.getLogger(__name__)


class Needs:
    """``sandboxes``: all that there are, by id, at any time."""

    def __init__(
        self, home: Home, ground: Ground, images: ImageLibrary, store: Store, sandboxes: Mapping[str, Sandbox]
    ) -> None:
        self._home, self._ground, self._images, self._store = home, ground, images, store
        self._sandboxes = sandboxes
        self._later: set[asyncio.Task[None]] = set()

    def names(self, digest: str) -> bool:
        """Some sandbox needs this snapshot, or may be about to write down that it does. Any thread may ask.

        Asked while nothing is registered in the store: what a capture has stored by then is written down before the use
        case ends that holds ``moving``.
        """
        every = list(self._sandboxes.values())
        busy = {sandbox.id for sandbox in every if sandbox.moving.locked()}  # first: a record is read after it
        if any(sandbox.record.names(digest) for sandbox in every):
            return True
        if not busy:
            return False
        try:
            return self._store.get(digest).config.sandbox_id in busy
        except (PerdureError, OSError):
            return True  # whose it is does not read: it is looked at again when nobody is busy

    def named_by_others(self, digest: str, sandbox_id: str) -> bool:
        """Another sandbox needs this snapshot, or a tag keeps it. Blocking."""
        if any(one.record.names(digest) for one in list(self._sandboxes.values()) if one.id != sandbox_id):
            return True
        return digest in self._store.tags().values()

    def let_go_if_named(self, digest: str) -> None:
        """A snapshot that was pulled needs no tag any more, once a sandbox names it. Blocking.

        On a full disk the tag stays, which only keeps the snapshot longer.
        """
        if any(one.record.names(digest) for one in list(self._sandboxes.values())):
            with contextlib.suppress(NoSpace):
                self._store.untag(transfer.kept_tag(digest))

    def templates_of_today(self) -> set[str] | None:
        """The templates that the next start of an image may take; None: not known. Blocking."""
        return self._ground.templates_in_use({image.digest for image in self._images.list()})

    def templates_in_use(self) -> set[str] | None:
        """The templates that a sandbox was started from or may be started from; None: not known. Blocking."""
        current = self.templates_of_today()
        if current is None:
            return None
        return current | {sandbox.record.template for sandbox in list(self._sandboxes.values())}

    async def leased(self, digest: str, held: contextlib.ExitStack) -> Snapshot:
        """The snapshot, which no sweep takes while ``held`` is; by another digest, where it was compacted meanwhile."""
        await asyncio.to_thread(held.enter_context, self._store.reading(digest))
        try:
            return await asyncio.to_thread(self._store.get, digest)
        except NotFound:
            if (current := self.compacted(digest)) is None:
                raise
        await asyncio.to_thread(held.enter_context, self._store.reading(current))
        return await asyncio.to_thread(self._store.get, current)

    def compacted(self, digest: str) -> str | None:
        """What became of a snapshot that was compacted, by a former digest or the beginning of one."""
        sees = acting.current().sees
        for sandbox in [one for one in self._sandboxes.values() if sees(one.record.owner)]:
            if (kept := sandbox.record.snapshot(digest)) is not None:
                return kept.info.digest
        return None

    async def find(self, ref: str) -> Snapshot:
        """By its digest or a unique beginning, also a former one. Raises NotFound, Conflict (ambiguous)."""
        try:
            return await asyncio.to_thread(self._store.find, ref)
        except NotFound:
            if (current := self.compacted(ref)) is None:
                raise
        return await asyncio.to_thread(self._store.get, current)

    def drop_once_read(self, digests: list[str], sandbox_id: str) -> None:
        """Delete what a removal had to leave of a sandbox's snapshots, because somebody still read it: a pager that
        ends, a push."""
        task = asyncio.create_task(self._drop_once_read(digests, sandbox_id))
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _drop_once_read(self, digests: list[str], sandbox_id: str) -> None:
        def is_left() -> bool:
            kept = set(self._store.digests())
            return any(one in kept and not self.named_by_others(one, sandbox_id) for one in digests)

        def remove() -> None:
            with headroom.given(self._home), contextlib.suppress(NoSpace):
                self._store.remove(digests, unless=lambda digest: self.named_by_others(digest, sandbox_id))

        pause_s = READ_S
        try:
            while await asyncio.to_thread(is_left):
                await asyncio.sleep(pause_s)
                await asyncio.to_thread(remove)
                pause_s = min(pause_s * 2, READ_MAX_S)
        except (PerdureError, OSError) as error:  # `fcrun snapshot gc` takes it
            _log.warning("snapshots of the removed %s stay: %s", sandbox_id, error)

    async def leave(self) -> None:
        """The daemon ends."""
        for task in self._later:
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)

    def drop_unnamed(self) -> None:
        """Snapshots that a suspend stored and did not live to write down: its sandbox went on, or died."""
        unnamed = [
            digest
            for digest, owner in self._store.owners().items()
            if owner in self._sandboxes and not self.named_by_others(digest, "")
        ]
        if not unnamed:
            return
        try:
            with headroom.given(self._home):
                _log.warning("%d bytes freed of snapshots that no sandbox names", self._store.remove(unnamed))
        except NoSpace as error:  # whoever comes to make room must find a node; the next start drops them
            _log.warning("snapshots that no sandbox names stay: %s", error)
