"""Compaction by itself: what is due is rewritten in the background, one snapshot at a time.

A child does the work (``python -m perdure.node.compaction``): at idle priority, and killed at once when somebody needs
its sandbox, or needs the store to itself. Then it begins again later. After it gave way GIVES_WAY times (or came too
late, as the sandbox was suspended again), it begins at once, runs at usual priority and is waited for, so that no chain
grows without end. The node itself only writes the result down.

A node that is killed takes the child with it. What the child stored by then and nobody names is dropped at the next
start, and what is due then is found again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec

from perdure.errors import Conflict, InvalidValue, NotFound, PerdureError
from perdure.execution.sandboxes import disk
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.snapshots.care import compact, explain
from perdure.execution.snapshots.store import Store
from perdure.formats.manifest import Snapshot
from perdure.host.paths import Home
from perdure.linux import process
from perdure.model import SandboxState

SETTING = "PERDURE_COMPACTION"  # on (default), off
SETTLE_S = 1.0  # after a suspend: who resumes at once is left alone
AGAIN_S = 2.0  # after it gave way
GIVES_WAY = 3

_log = logging.getLogger(__name__)


def is_on(environ: Mapping[str, str]) -> bool:
    """What the environment says. Raises InvalidValue."""
    word = environ.get(SETTING) or "on"
    if word not in ("on", "off"):
        raise InvalidValue(f"{SETTING} is {word!r}", hint="It must be 'on' or 'off'.")
    return word == "on"


class Compactor:
    """``run`` it as a task, for the node's whole life."""

    def __init__(
        self, home: Home, sandboxes: Sandboxes, *, settle_s: float = SETTLE_S, again_s: float = AGAIN_S
    ) -> None:
        self._home = home
        self._sandboxes = sandboxes
        self._settle_s, self._again_s = settle_s, again_s
        self._wanted: asyncio.Queue[str] = asyncio.Queue()
        self._gave_way: Counter[str] = Counter()
        self._at = ""  # the sandbox whose snapshot is being rewritten
        self._guard = threading.Lock()  # of the next, as threads ask too
        self._may_stop = False
        self._pidfd = -1  # of the child
        self._stopped = False

    async def run(self) -> None:
        """For ever; when it is cancelled no child is left."""
        self._sandboxes.before_moving = self._needs_sandbox
        self._sandboxes.store.before_deleting = self._stop
        looking = asyncio.create_task(self._look_on())
        try:
            for sandbox in self._sandboxes.all():  # what a former node did not come to
                if sandbox.state is SandboxState.SUSPENDED:
                    self._wanted.put_nowait(sandbox.id)
            only_long = self._wanted.qsize()  # of those only long chains: to look into every layer would take too long
            while True:
                sandbox_id = await self._wanted.get()
                only_long -= 1
                try:
                    await self._compact(self._sandboxes.find(sandbox_id), only_long=only_long >= 0)
                except NotFound:
                    continue  # it was removed, or its snapshot was given up meanwhile
                except (PerdureError, OSError) as error:
                    _log.warning("compaction for %s: %s", sandbox_id, error)
        finally:
            looking.cancel()

    async def _look_on(self) -> None:
        async for event in self._sandboxes.events.read(follow=True, since=None):
            if event.kind == "sandbox.suspended":
                self._want(event.sandbox_id, 0 if self._is_urgent(event.sandbox_id) else self._settle_s)
            elif event.kind == "sandbox.removed":
                self._gave_way.pop(event.sandbox_id, None)

    def _want(self, sandbox_id: str, after_s: float) -> None:
        asyncio.get_running_loop().call_later(after_s, self._wanted.put_nowait, sandbox_id)

    # -- who goes first -----------------------------------------------------------------------------------------------
    def _needs_sandbox(self, sandbox_id: str) -> None:
        """A use case is about to move this sandbox."""
        if sandbox_id == self._at:
            self._stop()

    def _stop(self) -> None:
        """Let go of the store and the processors now, unless it is our turn. Any thread may ask."""
        with self._guard:
            if not self._may_stop:
                return
            if self._pidfd >= 0:
                try:
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    return  # it has ended in this moment, with a result
            self._stopped = True

    # -- one snapshot -------------------------------------------------------------------------------------------------
    async def _compact(self, sandbox: Sandbox, *, only_long: bool) -> None:
        record, store = sandbox.record, self._sandboxes.store
        if record.parent is None or record.snapshot(record.parent) is None:
            return
        snapshot = await asyncio.to_thread(store.get, record.parent)
        longest = max(len(snapshot.memory.layers), len(snapshot.disk.layers))
        is_long = longest > explain.LAYERS_MAX
        if not is_long and (only_long or longest < 2 or sandbox.state is not SandboxState.SUSPENDED):
            return
        if not _is_here(store, snapshot):
            return  # it would be fetched as a whole
        if sandbox.state not in (SandboxState.SUSPENDED, SandboxState.RUNNING):
            self._want(sandbox.id, self._again_s)
            return
        disk.admit(
            self._home, store.folder, sum(blob.size for blob in snapshot.descriptors), "a compaction", trims=False
        )
        made = await self._rewritten(sandbox.id, snapshot.digest, urgent=self._is_urgent(sandbox.id))
        try:
            if made:
                await sandbox.take_compacted(snapshot.digest, made)
        except Conflict:  # it was suspended again meanwhile: too late for that one
            made = ""
            is_late = True
        else:
            is_late = self._stopped
        if is_late:
            self._gave_way[sandbox.id] += 1
            self._want(sandbox.id, 0 if self._is_urgent(sandbox.id) else self._again_s)
        elif made:
            del self._gave_way[sandbox.id]

    def _is_urgent(self, sandbox_id: str) -> bool:
        return self._gave_way[sandbox_id] >= GIVES_WAY

    async def _rewritten(self, sandbox_id: str, digest: str, *, urgent: bool) -> str:
        """The digest of the new one, by a child; empty: it was not due, or the child was stopped."""
        argv = [str(self._sandboxes.store.folder), str(self._home.templates), digest, *["--urgent"] * urgent]
        with self._guard:
            self._at, self._stopped, self._may_stop = sandbox_id, False, not urgent
        try:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", __name__, str(os.getpid()), *argv,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                start_new_session=True, cwd="/",
            )  # fmt: skip
            said, problem = await self._outcome(child)
        finally:
            with self._guard:
                self._at, self._may_stop = "", False
        if self._stopped:
            return ""
        if child.returncode != 0:
            words = problem.decode(errors="replace").strip() or f"its process ended with {child.returncode}"
            raise PerdureError(f"snapshot {digest} could not be compacted: {words}")
        return said.decode().strip()

    async def _outcome(self, child: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
        """What it wrote, once it has ended; until then it can be stopped."""
        with self._guard:
            self._pidfd = os.pidfd_open(child.pid)
        try:
            if self._stopped:  # while it was being started
                _kill(child)
            return await child.communicate()
        except asyncio.CancelledError:
            _kill(child)
            await child.wait()
            raise
        finally:
            with self._guard:
                os.close(self._pidfd)
                self._pidfd = -1
            self._sweep(child.pid)

    def _sweep(self, pid: int) -> None:
        """What a child had not finished writing."""
        for path in (self._sandboxes.store.folder / "ingest").glob(f"{pid}-*"):
            path.unlink(missing_ok=True)


def _kill(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended in this moment
        child.kill()


def _is_here(store: Store, snapshot: Snapshot) -> bool:
    return all(store.blob_path(layer.digest).exists() for layer in snapshot.memory.layers)


def main(argv: list[str]) -> int:
    """The child: PARENT_PID STORE TEMPLATES DIGEST [--urgent]. Prints the new digest, or nothing where none is due."""
    parent, folder, templates, digest = argv[:4]
    process.die_with(int(parent))
    if "--urgent" not in argv:
        with contextlib.suppress(OSError):  # not everywhere allowed; it is slower for the others then
            os.nice(19)
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        store = Store(Path(folder))
        with store.reading(digest):
            if not explain.due(store, store.get(digest), templates_folder=Path(templates)):
                return 0
        made = compact.compact(store, digest, templates_folder=Path(templates)).digest
    except (PerdureError, OSError, msgspec.MsgspecError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if made != digest:
        print(made, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
