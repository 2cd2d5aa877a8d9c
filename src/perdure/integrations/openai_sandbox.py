"""Sandboxes for agents of the OpenAI Agents SDK: ``PerdureSandboxClient`` is a sandbox client on a node's microVMs.

A session of the SDK's has one sandbox. When the session is closed that is suspended, with its memory and processes;
resumed, it goes on where it was. The SDK's own snapshots are of the files in the workspace; those of the client's
``checkpoint``, ``rewind`` and ``fork`` are of the whole machine.

Facts of the interface: ``agents.sandbox``, 0.24.
"""

from __future__ import annotations

import asyncio
import os
import uuid

from agents.sandbox.errors import ConfigurationError, ErrorCode
from agents.sandbox.manifest import Manifest
from agents.sandbox.session.dependencies import Dependencies
from agents.sandbox.session.manager import Instrumentation
from agents.sandbox.session.sandbox_client import BaseSandboxClient
from agents.sandbox.session.sandbox_session import SandboxSession
from agents.sandbox.session.sandbox_session_state import SandboxSessionState
from agents.sandbox.snapshot import SnapshotBase, SnapshotSpec, resolve_snapshot

from perdure.client.node import NodeClient
from perdure.errors import NotFound
from perdure.host.identity import node_home
from perdure.host.paths import Home
from perdure.integrations.images import created
from perdure.integrations.openai_sandbox_session import PerdureSandboxOptions as PerdureSandboxOptions
from perdure.integrations.openai_sandbox_session import PerdureSandboxSession, PerdureSandboxState
from perdure.model import Fork, SandboxInfo, SandboxSpec


class PerdureSandboxClient(BaseSandboxClient[PerdureSandboxOptions]):
    """Makes sessions on sandboxes of a node: ``SandboxRunConfig(client=PerdureSandboxClient())``.

    node: None for this home's, which is started if need be, or the one that FCRUN_HOST names.
    """

    backend_id = "perdure"
    supports_default_options = True

    def __init__(
        self,
        node: NodeClient | None = None,
        *,
        instrumentation: Instrumentation | None = None,
        dependencies: Dependencies | None = None,
    ) -> None:
        super().__init__()
        self._node = node or NodeClient.named(os.environ, node_home(Home.find()))
        self._instrumentation = instrumentation or Instrumentation()
        self._dependencies = dependencies

    async def create(
        self,
        *,
        snapshot: SnapshotSpec | SnapshotBase | None = None,
        manifest: Manifest | None = None,
        options: PerdureSandboxOptions | None = None,
    ) -> SandboxSession:
        """A new session, with a sandbox of its own. Raises ``perdure.errors``."""
        given = manifest if manifest is not None else Manifest()
        self._validate_manifest_for_create(given)
        _refuse_host_paths(given)
        wanted, session_id = options or PerdureSandboxOptions(), uuid.uuid4()
        info = await self._made(wanted, given)
        state = PerdureSandboxState(
            session_id=session_id,
            manifest=given,
            snapshot=resolve_snapshot(snapshot, str(session_id)),
            sandbox_id=info.id,
            options=wanted,
            exposed_ports=wanted.exposed_ports,
        )
        return self._session(state)

    async def _made(self, options: PerdureSandboxOptions, manifest: Manifest) -> SandboxInfo:
        spec = options.spec(await manifest.environment.resolve())
        return await asyncio.to_thread(self._make, spec)

    def _make(self, spec: SandboxSpec) -> SandboxInfo:
        self._node.ensure()
        info = created(self._node, spec)
        try:
            return self._node.start(info.id)
        except BaseException:
            self._node.remove(info.id, force=True)  # nobody was told of it
            raise

    def _session(self, state: PerdureSandboxState, *, is_preserved: bool = False) -> SandboxSession:
        inner = PerdureSandboxSession(self._node, state)
        inner._set_start_state_preserved(is_preserved)
        return self._wrap_session(inner, instrumentation=self._instrumentation)

    async def resume(self, state: SandboxSessionState) -> SandboxSession:
        """The session on the sandbox that it had. Where that was removed: on a new one, with what the SDK's snapshot
        has of the workspace."""
        if not isinstance(state, PerdureSandboxState):
            raise TypeError("PerdureSandboxClient.resume expects a PerdureSandboxState")
        state.assert_path_grants_rebound()
        _refuse_host_paths(state.manifest)
        await asyncio.to_thread(self._node.ensure)
        try:
            if state.mount_authority_rebound or not state.sandbox_id:
                raise NotFound("no sandbox has these mounts")
            await asyncio.to_thread(self._node.get, state.sandbox_id)
            return self._session(state, is_preserved=True)
        except NotFound:
            state.sandbox_id = (await self._made(state.options, state.manifest)).id
            state.workspace_root_ready = False
            return self._session(state)

    async def delete(self, session: SandboxSession) -> SandboxSession:
        """Remove its sandbox, for ever."""
        inner = _inner(session)
        inner._is_closed = True
        try:
            await asyncio.to_thread(self._node.remove, inner.state.sandbox_id, force=True)
        except NotFound:
            pass
        return session

    def deserialize_session_state(self, payload: dict[str, object]) -> SandboxSessionState:
        """See the SDK."""
        return self._deserialize_session_state_payload(payload, PerdureSandboxState)

    # -- what a microVM can do besides

    async def checkpoint(self, session: SandboxSession) -> str:
        """The digest of a snapshot of its whole machine as it is now; it runs on."""
        return (await asyncio.to_thread(self._node.checkpoint, _inner(session).state.sandbox_id)).digest

    async def rewind(self, session: SandboxSession, digest: str) -> None:
        """Take its machine back to such a snapshot: files, memory and processes of then."""
        await asyncio.to_thread(self._node.resume, _inner(session).state.sandbox_id, snapshot=digest)

    async def fork(self, session: SandboxSession, count: int = 1) -> list[SandboxSession]:
        """Sessions that go on from where this one is, each on a sandbox of its own, with its processes. Start them as
        any other; what the SDK keeps of them is under ids of their own, if its snapshot is one of the SDK's specs."""
        state = _inner(session).state
        forks = [Fork(labels=state.options.labels) for _ in range(count)]
        made = await asyncio.to_thread(self._node.fork, state.sandbox_id, forks)
        return [self._session(_forked(state, info), is_preserved=True) for info in made]


def _forked(state: PerdureSandboxState, info: SandboxInfo) -> PerdureSandboxState:
    session_id = uuid.uuid4()
    snapshot = state.snapshot.model_copy(update={"id": str(session_id)})
    return state.model_copy(
        update={
            "session_id": session_id,
            "sandbox_id": info.id,
            "snapshot": snapshot,
            "manifest": state.manifest.model_copy(deep=True),
        }
    )


def _inner(session: SandboxSession) -> PerdureSandboxSession:
    inner = session._inner
    if not isinstance(inner, PerdureSandboxSession):
        raise TypeError("PerdureSandboxClient takes sessions that it made")
    return inner


def _refuse_host_paths(manifest: Manifest) -> None:
    for grant in manifest.extra_path_grants:
        if grant.host_path is not None:
            raise ConfigurationError(
                message=f"{grant.path}: a microVM shares no folder with this machine; "
                "put the files into the manifest (LocalDir, LocalFile)",
                error_code=ErrorCode.SANDBOX_CONFIG_INVALID,
                op="start",
                context={"path": grant.path},
            )
