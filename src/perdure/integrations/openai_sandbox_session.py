"""A session of the OpenAI Agents SDK on one sandbox; ``openai_sandbox`` makes them."""

from __future__ import annotations

import asyncio
import io
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from agents.sandbox.errors import (
    ExecTimeoutError,
    ExecTransportError,
    ExposedPortUnavailableError,
    WorkspaceArchiveReadError,
    WorkspaceArchiveWriteError,
    WorkspaceReadNotFoundError,
)
from agents.sandbox.session.base_sandbox_session import BaseSandboxSession
from agents.sandbox.session.runtime_helpers import RESOLVE_WORKSPACE_PATH_HELPER, RuntimeHelperScript
from agents.sandbox.session.sandbox_client import BaseSandboxClientOptions
from agents.sandbox.session.sandbox_session_state import SandboxSessionState
from agents.sandbox.session.workspace_payloads import coerce_write_payload
from agents.sandbox.types import ExecResult, ExposedPortEndpoint, User
from agents.sandbox.util.tar_utils import UnsafeTarMemberError, validate_tarfile
from agents.sandbox.workspace_paths import sandbox_path_str
from pydantic import Field

from perdure.client.node import NodeClient
from perdure.errors import CommandNotExecutable, CommandNotFound, NotFound, PerdureError
from perdure.integrations import archives, commands, files
from perdure.model import (
    DEFAULT_DISK_MIB,
    DEFAULT_MEMORY_MIB,
    DEFAULT_VCPUS,
    ExecSpec,
    PublishedPort,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
)

IDLES = ("sleep", "infinity")
WRITE = 'mkdir -p "$(dirname "$1")" && cat > "$1"'
LOOPBACK = "127.0.0.1"  # where published ports are found
ASLEEP = (SandboxState.SUSPENDED, SandboxState.SUSPENDING)
ALIVE = (SandboxState.RUNNING, SandboxState.STARTING, SandboxState.RESUMING, SandboxState.PAUSED, *ASLEEP)

Result = TypeVar("Result")


class PerdureSandboxOptions(BaseSandboxClientOptions):
    """What a session's sandbox is made from. image: "" for a small Debian with Python; sizes: 0 for the usual ones;
    egress: networks and host names that it may reach (None: all, ("none",): nothing). suspend_after_s: it sleeps after
    so long without work, and wakes by itself; 0: only when its session is closed."""

    type: Literal["perdure"] = "perdure"
    image: str = ""
    exposed_ports: tuple[int, ...] = ()
    memory_mib: int = 0
    vcpus: int = 0
    disk_mib: int = 0
    egress: tuple[str, ...] | None = None
    suspend_after_s: float = 600.0
    labels: dict[str, str] = Field(default_factory=dict)

    def spec(self, env: dict[str, str]) -> SandboxSpec:
        """The same in Perdure's words."""
        return SandboxSpec(
            image=self.image,
            command=list(IDLES),
            entrypoint=[],
            env=env,
            egress=None if self.egress is None else list(self.egress),
            ports=[PublishedPort(guest_port=port, host_ip=LOOPBACK) for port in self.exposed_ports],
            suspend_after_s=self.suspend_after_s,
            labels=self.labels,
            memory_mib=self.memory_mib or DEFAULT_MEMORY_MIB,
            vcpus=self.vcpus or DEFAULT_VCPUS,
            disk_mib=self.disk_mib or DEFAULT_DISK_MIB,
        )


class PerdureSandboxState(SandboxSessionState):
    """What a session is resumed from."""

    type: Literal["perdure"] = "perdure"
    sandbox_id: str
    options: PerdureSandboxOptions

    def _sanitize_persisted_provider_identity(self, data: dict[str, Any], *, mount_authority_redacted: bool) -> None:
        if mount_authority_redacted:  # another manifest would be mounted than the one that the sandbox has
            data |= {"sandbox_id": "", "workspace_root_ready": False}


class PerdureSandboxSession(BaseSandboxSession):
    """A session on one sandbox: what ``SandboxSession`` of the SDK stands on."""

    state: PerdureSandboxState

    def __init__(self, node: NodeClient, state: PerdureSandboxState) -> None:
        self.state = state
        self._node = node
        self._is_closed = False

    # -- its life

    async def _ensure_backend_started(self) -> None:
        await asyncio.to_thread(self._awake)
        if self._is_closed:  # it is started again, on what it had
            self._set_start_state_preserved(True)
        self._is_closed = False

    def _awake(self) -> SandboxInfo:
        info = self._node.get(self.state.sandbox_id)
        if info.state is SandboxState.SUSPENDED:
            return self._node.resume(info.id)
        if info.state is SandboxState.PAUSED:
            return self._node.unpause(info.id)
        if info.state in (SandboxState.CREATED, SandboxState.EXITED):  # one that exited keeps its files
            return self._node.start(info.id)
        return info

    async def running(self) -> bool:
        """Whether it is there, and its session was not closed. One that sleeps wakes by itself."""
        if self._is_closed:
            return False
        try:
            return (await asyncio.to_thread(self._node.get, self.state.sandbox_id)).state in ALIVE
        except NotFound:
            return False

    async def _shutdown_backend(self) -> None:
        self._is_closed = True
        await asyncio.to_thread(self._sleep)

    def _sleep(self) -> None:
        try:
            if self._node.get(self.state.sandbox_id).state is SandboxState.RUNNING:
                self._node.suspend(self.state.sandbox_id)
        except PerdureError:
            pass  # it went in this moment, or it runs on: closing is best effort, as the SDK has it

    async def _resolve_exposed_port(self, port: int) -> ExposedPortEndpoint:
        info = await asyncio.to_thread(self._node.get, self.state.sandbox_id)
        for published in info.ports:
            if published.guest_port == port and published.protocol == "tcp":
                return ExposedPortEndpoint(host=published.host_ip or LOOPBACK, port=published.host_port)
        raise ExposedPortUnavailableError(
            port=port, exposed_ports=self.state.exposed_ports, reason="backend_unavailable"
        )

    # -- commands

    async def exec(
        self,
        *command: str | Path,
        timeout: float | None = None,
        shell: bool | list[str] = True,
        user: str | User | None = None,
    ) -> ExecResult:
        """See the SDK; a user is taken on by the sandbox itself, without sudo."""
        if user is None:
            return await super().exec(*command, timeout=timeout, shell=shell)
        argv = self._prepare_exec_command(*command, shell=shell, user=None)
        return await self._run(argv, timeout, user=user)

    async def _exec_internal(self, *command: str | Path, timeout: float | None = None) -> ExecResult:
        return await self._run([str(word) for word in command], timeout)

    async def _run(
        self, argv: list[str], timeout: float | None, *, user: str | User | None = None, stdin: bytes | None = None
    ) -> ExecResult:
        name = user.name if isinstance(user, User) else user or ""
        cwd = self.state.manifest.root if self.state.workspace_root_ready else ""
        spec = ExecSpec(command=argv, cwd=cwd, user=name, stdin=stdin is not None)
        command = commands.Command(self._node, self.state.sandbox_id, spec, stdin=stdin or b"", timeout_s=timeout)
        try:
            ended = await asyncio.to_thread(command.finish)
        except asyncio.CancelledError:
            command.end()  # its thread would wait for it
            raise
        except (CommandNotFound, CommandNotExecutable) as error:  # as a shell has it
            return ExecResult(stdout=b"", stderr=str(error).encode(), exit_code=error.exit_status)
        except PerdureError as error:
            raise ExecTransportError(command=argv, cause=error, message=str(error)) from error
        if ended.exit_status is None:
            raise ExecTimeoutError(command=argv, timeout_s=timeout)
        return ExecResult(stdout=ended.stdout, stderr=ended.stderr, exit_code=ended.exit_status)

    # -- files

    def _runtime_helpers(self) -> tuple[RuntimeHelperScript, ...]:
        return (RESOLVE_WORKSPACE_PATH_HELPER,)

    def _current_runtime_helper_cache_key(self) -> object | None:
        return self.state.sandbox_id

    async def _validate_path_access(self, path: Path | str, *, for_write: bool = False) -> Path:
        return await self._validate_remote_path_access(path, for_write=for_write)

    async def read(self, path: Path, *, user: str | User | None = None) -> io.IOBase:
        """See the SDK."""
        place = await self._check_read_with_exec(path, user=user) if user else await self._validate_path_access(path)
        return io.BytesIO(await self._content(path, place, None))

    async def _read_bounded(self, path: Path, *, max_bytes: int) -> bytes:
        return await self._content(path, await self._validate_path_access(path), max_bytes)

    async def _content(self, path: Path, place: Path, limit: int | None) -> bytes:
        try:
            content, _ = await asyncio.to_thread(
                files.read, self._node, self.state.sandbox_id, sandbox_path_str(place), limit=limit
            )
        except NotFound as error:
            raise WorkspaceReadNotFoundError(path=path, cause=error) from error
        except PerdureError as error:
            raise WorkspaceArchiveReadError(path=path, cause=error) from error
        return content

    async def write(self, path: Path, data: io.IOBase, *, user: str | User | None = None) -> None:
        """See the SDK."""
        payload = coerce_write_payload(path=path, data=data)
        place = await self._validate_path_access(path, for_write=True)
        content = await asyncio.to_thread(payload.stream.read)
        if user is None:
            await self._writing(place, files.write, self._node, self.state.sandbox_id, sandbox_path_str(place), content)
            return
        argv = ["sh", "-c", WRITE, "sh", sandbox_path_str(place)]
        ended = await self._run(argv, None, user=user, stdin=content)
        if not ended.ok():
            told = {"stderr": ended.stderr.decode(errors="replace")}
            raise WorkspaceArchiveWriteError(path=place, context=told)

    async def _writing(self, path: Path, function: Callable[..., Result], *args: Any) -> Result:
        try:
            return await asyncio.to_thread(function, *args)
        except PerdureError as error:
            raise WorkspaceArchiveWriteError(path=path, cause=error, message=str(error)) from error

    async def persist_workspace(self) -> io.IOBase:
        """The workspace as a tar, without what the SDK says is not to be kept."""
        root = self.state.manifest.root
        skipped = {PurePosixPath(path.as_posix()) for path in self._persist_workspace_skip_relpaths()}

        def made() -> Any:
            return archives.portable(self._node.get_archive(self.state.sandbox_id, root), root, skipped)

        try:
            return await asyncio.to_thread(made)
        except PerdureError as error:
            raise WorkspaceArchiveReadError(path=Path(root), cause=error) from error

    async def hydrate_workspace(self, data: io.IOBase) -> None:
        """Unpack such a tar into the workspace."""
        root = self.state.manifest.root
        kept = await asyncio.to_thread(_checked, data, Path(root))
        try:
            made = await self.exec("mkdir", "-p", root, shell=False)
            if not made.ok():
                raise WorkspaceArchiveWriteError(path=Path(root))
            await self._writing(Path(root), self._node.put_archive, self.state.sandbox_id, root, archives.chunks(kept))
        finally:
            kept.close()


def _checked(data: io.IOBase, root: Path) -> Any:
    """The tar in a file of its own, and nothing in it that would leave the workspace."""
    kept = tempfile.SpooledTemporaryFile(archives.SPOOL_BYTES)  # noqa: SIM115 - the caller closes it
    try:
        for piece in archives.chunks(data):
            kept.write(piece)
        kept.seek(0)
        with tarfile.open(fileobj=kept, mode="r:") as tar:
            validate_tarfile(tar, allow_external_symlink_targets=False)
    except UnsafeTarMemberError as error:
        kept.close()
        told = {"reason": error.reason, "member": error.member}
        raise WorkspaceArchiveWriteError(path=root, context=told, cause=error) from error
    except (tarfile.TarError, TypeError) as error:
        kept.close()
        raise WorkspaceArchiveWriteError(path=root, cause=error) from error
    kept.seek(0)
    return kept
