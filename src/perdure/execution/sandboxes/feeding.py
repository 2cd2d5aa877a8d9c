"""Feeds the pager of a machine whose memory is partly beyond this machine: what it wants is fetched into the cache.

    pager -> keeper -> ``Machine`` -> ``Feeder.want`` -> fetched -> ``pager-have`` | ``pager-lost``

A ``Feeder`` is opened before the restore and lives as long as the machine needs it. The next node opens another one
(``again``), and the keeper says once more what is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from perdure.errors import MachineFailed, PerdureError, Unavailable
from perdure.execution.machine.remote import Keeper
from perdure.execution.snapshots.fetching import Fetcher
from perdure.execution.snapshots.store import Store
from perdure.formats import memorymap
from perdure.formats.manifest import Snapshot

LOST_AFTER_S = 45.0  # without a store, and one attempt more
SLOW_AFTER_S = 100.0  # of one attempt, with a store that gives a byte now and then: the pager waits 120 s
AGAIN_S = 0.5

Frames = list[tuple[int, int]]  # (number of the layer, number of the frame in it)

_log = logging.getLogger(__name__)


def is_away(store: Store, snapshot: Snapshot) -> bool:
    """Whether a memory layer of the snapshot is not in the store."""
    return any(not store.blob_path(layer.digest).exists() for layer in snapshot.memory.layers)


class Feeder:
    """Of one machine. Until it is closed, nothing of the snapshot is collected or evicted from the cache."""

    def __init__(
        self,
        store: Store,
        snapshot: Snapshot,
        partial: Sequence[bool] | None = None,
        *,
        lost_after_s: float = LOST_AFTER_S,
        slow_after_s: float = SLOW_AFTER_S,
    ) -> None:
        """Blocking. ``partial``: as ``Fetcher`` takes it. Raises as it does."""
        self._lost_after_s, self._slow_after_s = lost_after_s, slow_after_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._tell: Callable[..., Awaitable[Any]] | None = None
        self._is_lost = False
        self._fetched_frames = self._fetched_bytes = 0  # that the pager was told of
        with contextlib.ExitStack() as held:
            held.enter_context(store.reading(snapshot.digest))
            self._fetcher = held.enter_context(Fetcher(store, snapshot, partial))
            self._held = held.pop_all()

    @property
    def joined(self) -> bool:
        """A machine has it, and closes it."""
        return self._tell is not None

    def join(self, tell: Callable[..., Awaitable[Any]]) -> None:
        """``tell(op, **parameters)`` is the keeper's: it must come before the first ``want``."""
        self._tell = tell

    def ahead(self, frames: Sequence[tuple[int, int]]) -> None:
        """Begin to fetch what nobody has asked for yet."""
        for group in self._fetcher.together(frames):
            self._spawn(self._fetch_ahead(group))

    def want(self, frames: Sequence[tuple[int, int]]) -> None:
        """Fetch these, and tell the keeper of each as soon as it is here."""
        try:
            groups = self._fetcher.together(frames)
        except PerdureError as error:
            self._spawn(self._lost(error))
            return
        for group in groups:
            self._spawn(self._bring(group))

    @property
    def figures(self) -> dict[str, int]:
        """For ``inspect``."""
        return {"frames": self._fetched_frames, "bytes": self._fetched_bytes}

    def stop(self) -> None:
        """Nobody waits any more."""
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        self.stop()
        await asyncio.to_thread(self._held.close)

    def leave(self) -> None:
        """The same where nobody can wait: the node ends."""
        self.stop()
        asyncio.get_running_loop().run_in_executor(None, self._held.close)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch_ahead(self, frames: Frames) -> None:
        with contextlib.suppress(PerdureError, OSError):  # the pager will ask for them, and hear why not
            await self._fetcher.want(frames)

    async def _bring(self, frames: Frames) -> None:
        began = time.monotonic()
        deadline = began + self._lost_after_s
        while True:
            try:
                async with asyncio.timeout(self._slow_after_s - (time.monotonic() - began)):
                    await self._fetcher.want(frames)
                break
            except TimeoutError:
                await self._lost(
                    Unavailable(
                        f"{len(frames)} frames did not come within {self._slow_after_s:g} s: the store is too slow",
                        hint="Pull the snapshot first, then resume it: fcrun snapshot pull",
                    )
                )
                return
            except Unavailable as error:
                if time.monotonic() > deadline or self._is_lost:
                    await self._lost(error)
                    return
                _log.warning("%d frames do not come: %s", len(frames), error)
                await asyncio.sleep(AGAIN_S)
            except PerdureError as error:
                await self._lost(error)
                return
            except OSError as error:
                await self._lost(MachineFailed(f"the cache of frames cannot be written: {error}"))
                return
        self._fetched_frames += len(frames)
        self._fetched_bytes += self._fetcher.size_of(frames)
        await self._say("pager-have", frames=frames)

    async def _lost(self, error: PerdureError) -> None:
        if not self._is_lost:
            self._is_lost = True
            await self._say("pager-lost", message=error.message, hint=error.hint)

    async def _say(self, op: str, **params: Any) -> None:
        assert self._tell is not None
        try:
            await self._tell(op, **params)
        except PerdureError as error:
            _log.info("%s: %s", op, error)  # the keeper is gone: who watches the machine says so


async def opened(store: Store, snapshot: Snapshot) -> Feeder | None:
    """None: all of it is here."""
    return await asyncio.to_thread(lambda: Feeder(store, snapshot) if is_away(store, snapshot) else None)


async def again(store: Store, digest: str, memory_map: Path, keeper: Keeper, facts: dict[str, Any]) -> Feeder | None:
    """For a machine that another node restored from the snapshot ``digest`` with this map; ``facts``: what its keeper
    says of it. Where it cannot be fed it is told so, and ends.
    """
    if facts.get("resident", True) or not digest:
        return None

    def reopen() -> Feeder | None:
        partial = memorymap.decode(memory_map.read_bytes()).partial
        return Feeder(store, store.get(digest), partial) if any(partial) else None

    try:
        return await asyncio.to_thread(reopen)
    except (PerdureError, OSError) as error:
        _log.warning("%s cannot be fed: %s", keeper.sandbox_id, error)
        hint = getattr(error, "hint", "")
        await keeper.request("pager-lost", message=getattr(error, "message", str(error)), hint=hint)
        return None


async def populate(keeper: Keeper) -> None:
    """Let its pager bring the whole memory in the background; where that is not heard, whoever watches it knows why."""
    with contextlib.suppress(PerdureError):
        await keeper.request("pager-populate")
