"""Tools about sandboxes: microVMs of the node, in which a model works."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from perdure.errors import InvalidValue
from perdure.integrations import commands, files
from perdure.integrations.images import created
from perdure.integrations.mcp.tools import ADDS, CHANGES, LOOKS, RUNS_CODE, Answer, add, plain
from perdure.model import (
    DEFAULT_DISK_MIB,
    DEFAULT_MEMORY_MIB,
    DEFAULT_VCPUS,
    ExecSpec,
    Fork,
    SandboxInfo,
    SandboxSpec,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mcp.server.mcpserver import MCPServer

    from perdure.client.node import NodeClient

OUTPUT_BYTES = 64 << 10  # of each stream, that a model is shown
FILE_BYTES = 256 << 10
SUSPEND_AFTER_S = 600.0
NO_ENV: dict[str, str] = {}
IDLES = ("sleep", "infinity")  # every image of a distribution has it

Ref = Annotated[str, Field(description="the sandbox's name, its id, or a unique prefix of that")]
Path = Annotated[str, Field(description="an absolute path in the sandbox")]
Seconds = Annotated[float, Field(gt=0, le=3600)]
Size = Annotated[int, Field(ge=0, le=16 << 20)]


class SandboxTools:
    """node: gives a client of a node that answers; it starts one where that is this machine's."""

    def __init__(self, node: Callable[[], NodeClient]) -> None:
        self._node = node

    def offer(self, server: MCPServer[Any]) -> None:
        """All of them."""
        for tool, hints in (
            (self.sandbox_create, ADDS),
            (self.sandbox_list, LOOKS),
            (self.sandbox_exec, RUNS_CODE),
            (self.sandbox_read_file, LOOKS),
            (self.sandbox_write_file, CHANGES),
            (self.sandbox_suspend, ADDS),
            (self.sandbox_resume, CHANGES),
            (self.sandbox_checkpoint, ADDS),
            (self.sandbox_snapshots, LOOKS),
            (self.sandbox_fork, ADDS),
            (self.sandbox_remove, CHANGES),
        ):
            add(server, tool, hints)

    def sandbox_create(
        self,
        image: Annotated[str, Field(description="such as debian:12; empty: a small Debian with Python")] = "",
        name: str = "",
        command: Annotated[tuple[str, ...], Field(description="its main process; none: one that only waits")] = (),
        env: dict[str, str] = NO_ENV,
        cwd: str = "",
        user: str = "",
        memory_mib: Annotated[int, Field(ge=0)] = 0,
        vcpus: Annotated[int, Field(ge=0)] = 0,
        disk_mib: Annotated[int, Field(ge=0)] = 0,
        egress: Annotated[
            list[str] | None,
            Field(description="networks (CIDR) and host names that it may reach, ['none'] for none; null: all"),
        ] = None,
        suspend_after_s: Annotated[
            float, Field(ge=0, description="it sleeps after so long without work, and wakes by itself; 0: never")
        ] = SUSPEND_AFTER_S,
    ) -> Answer:
        """Make a sandbox, a microVM of its own, and start it. It stays, with its files and processes, until it is
        removed; run commands in it with sandbox_exec. An image that is not here yet is pulled first."""
        spec = SandboxSpec(
            image=image,
            name=name,
            command=list(command or IDLES),
            entrypoint=None if command else [],
            env=env,
            cwd=cwd,
            user=user,
            egress=egress,
            suspend_after_s=suspend_after_s,
            memory_mib=memory_mib or DEFAULT_MEMORY_MIB,
            vcpus=vcpus or DEFAULT_VCPUS,
            disk_mib=disk_mib or DEFAULT_DISK_MIB,
        )
        node = self._node()
        made = created(node, spec)
        try:
            return shown(node.start(made.id))
        except BaseException:
            node.remove(made.id, force=True)  # nobody was told of it
            raise

    def sandbox_list(self) -> Answer:
        """All sandboxes of this machine, the newest first, and what each of them does."""
        return {"sandboxes": [shown(info) for info in self._node().list()]}

    def sandbox_exec(
        self,
        sandbox: Ref,
        command: Annotated[str | list[str], Field(description="a line for sh -c, or a program and its arguments")],
        stdin: str = "",
        env: dict[str, str] = NO_ENV,
        cwd: str = "",
        user: str = "",
        timeout_s: Seconds = 60.0,
        output_bytes: Annotated[Size, Field(description="how much of stdout, and of stderr, is told")] = OUTPUT_BYTES,
        background: Annotated[bool, Field(description="do not wait for it; its output is dropped")] = False,
    ) -> Answer:
        """Run a command in a sandbox and wait for its end: exit_status, stdout, stderr. One that sleeps is woken. When
        the time is over it is killed, and exit_status is null. Files and processes of earlier commands are there."""
        argv = ["sh", "-c", command] if isinstance(command, str) else command
        if not argv:
            raise InvalidValue("command is empty", hint="Give a line for sh, or a program and its arguments.")
        spec = ExecSpec(command=argv, env=env, cwd=cwd, user=user, stdin=bool(stdin))
        if background:
            return {"process": self._node().exec_detached(sandbox, spec)}
        command_run = commands.Command(
            self._node(), sandbox, spec, stdin=stdin.encode(), timeout_s=timeout_s, keep_bytes=output_bytes
        )
        ended = command_run.finish()
        told = {"exit_status": ended.exit_status, "stdout": _text(ended.stdout), "stderr": _text(ended.stderr)}
        return told | ({"dropped_bytes": ended.dropped_bytes} if ended.dropped_bytes else {})

    def sandbox_read_file(
        self,
        sandbox: Ref,
        path: Path,
        offset: Annotated[int, Field(ge=0, description="in bytes")] = 0,
        limit: Annotated[Size, Field(description="in bytes")] = FILE_BYTES,
    ) -> Answer:
        """Read a file of a sandbox: its content as text, or in base64 where it is no UTF-8, and its whole size."""
        data, size_bytes = files.read(self._node(), sandbox, path, offset=offset, limit=limit)
        content, encoding, count = _encoded(data)
        return {
            "content": content, "encoding": encoding, "offset": offset, "bytes": count, "size_bytes": size_bytes
        }  # fmt: skip

    def sandbox_write_file(
        self,
        sandbox: Ref,
        path: Path,
        content: str,
        encoding: Annotated[Literal["utf-8", "base64"], Field(description="of content")] = "utf-8",
        mode: Annotated[str, Field(pattern="^[0-7]{0,4}$", description="permission bits, such as 755")] = "",
    ) -> Answer:
        """Write a file of a sandbox, whole. Folders that are missing are made; it is root's."""
        try:
            data = base64.b64decode(content, validate=True) if encoding == "base64" else content.encode()
        except ValueError as error:
            raise InvalidValue(f"content is no base64: {error}") from error
        files.write(self._node(), sandbox, path, data, mode=int(mode, 8) if mode else None)
        return {"path": path, "bytes": len(data)}

    def sandbox_suspend(self, sandbox: Ref) -> Answer:
        """Put a sandbox to sleep: its memory and files are stored as a snapshot, and it takes no more memory. It wakes
        at its next command, or by sandbox_resume, and goes on where it was."""
        return plain(self._node().suspend(sandbox))

    def sandbox_resume(
        self,
        sandbox: Ref,
        snapshot: Annotated[
            str, Field(description="the digest of one of its snapshots, to go back to that, whatever it does now")
        ] = "",
    ) -> Answer:
        """Wake a sandbox, or take it back to an earlier snapshot of it: memory, processes and files of that moment."""
        return shown(self._node().resume(sandbox, snapshot=snapshot or None))

    def sandbox_checkpoint(self, sandbox: Ref) -> Answer:
        """Take a snapshot of a running sandbox, which goes on. Its digest is what sandbox_resume goes back to, and what
        sandbox_fork makes others from."""
        return plain(self._node().checkpoint(sandbox))

    def sandbox_snapshots(self, sandbox: Ref) -> Answer:
        """The snapshots of a sandbox, the oldest first."""
        return {"snapshots": [plain(snapshot) for snapshot in self._node().snapshots(sandbox)]}

    def sandbox_fork(
        self,
        source: Annotated[str, Field(description="a sandbox, or the digest of a snapshot")],
        count: Annotated[int, Field(ge=1, le=32)] = 1,
        name: Annotated[str, Field(description="of the new one; of several NAME-1, NAME-2 …")] = "",
    ) -> Answer:
        """Make new sandboxes that go on from where another one is, each by itself: with its files, and with its memory
        and processes as they are at that moment. The other one goes on, too."""
        names = [name if count == 1 or not name else f"{name}-{number}" for number in range(1, count + 1)]
        made = self._node().fork(source, [Fork(name=one) for one in names])
        return {"sandboxes": [shown(info) for info in made]}

    def sandbox_remove(self, sandbox: Ref) -> Answer:
        """Remove a sandbox for ever, with its files and snapshots, also while it runs."""
        node = self._node()
        info = node.get(sandbox)
        node.remove(info.id, force=True)
        return {"removed": info.id, "name": info.name}


def shown(info: SandboxInfo) -> Answer:
    """What a model is told of a sandbox."""
    told: dict[str, Any] = {"id": info.id, "name": info.name, "state": str(info.state), "image": info.spec.image}
    if info.exit_status is not None or info.cause:
        told |= {"exit_status": info.exit_status, "cause": info.cause}
    if info.addresses:
        told["addresses"] = info.addresses
    if info.snapshot is not None:
        told |= {"snapshot": info.snapshot.digest, "stored_bytes": info.stored_bytes}
    return told


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _encoded(data: bytes) -> tuple[str, str, int]:
    """(The content, its encoding, how many bytes that is): a character that is cut at its end is left out."""
    try:
        return data.decode(), "utf-8", len(data)
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.start:
            return data[: error.start].decode(), "utf-8", error.start
        return base64.b64encode(data).decode(), "base64", len(data)
