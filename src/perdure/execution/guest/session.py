"""The host's end of one sandbox's channel: the signatures that the node builds on (bodies follow in the next commits)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

from perdure.errors import PerdureError
from perdure.model import ExecSpec


@dataclass(frozen=True)
class GuestInfo:
    """What the guest said of itself when its newest connection began."""

    boot_id: str  # 32 hex digits, drawn at boot: the same in every restore of one boot
    configured: bool  # False: a template that waits for ``configure``
    frozen: bool  # the workload stands still (a restore after ``quiesce``): ``wake`` or ``thaw`` it
    auto_ordinal: int  # the ordinal of the last call on lane "auto"
    open_calls: int


@dataclass(frozen=True)
class Identity:
    hostname: str = ""  # empty: keep
    machine_id: str = ""  # 32 hex digits; empty: keep


@dataclass(frozen=True)
class Quiesced:
    frozen: bool
    synced: bool
    dropped: bool  # page cache given back


class Process:
    """One process in the guest. Its output is kept in the guest until acknowledged (at most 256 KiB per stream)."""

    id: str  # 12 hex digits
    pid: int
    tty: bool
    exit_status: int | None  # 128 + n for signal n

    def output(self) -> AsyncIterator[tuple[int, int, bytes]]:
        """(stream 1 or 2, offset of the first byte, bytes) until both streams ended. ``ack`` what is handled for good."""
        ...

    def acknowledged(self, stream: int) -> int: ...
    def ack(self, stream: int, offset: int) -> None:
        """All bytes below ``offset`` are durable: the guest forgets them."""

    def skip_to(self, stream: int, offset: int) -> None:
        """After adoption: bytes below ``offset`` are in the log file already: drop and acknowledge them."""

    async def write_stdin(self, data: bytes) -> None:
        """Returns when the bytes are in the window (256 KiB); each arrives once, over any number of connections."""

    def close_stdin(self) -> None: ...
    def resize(self, rows: int, columns: int) -> None: ...
    async def signal(self, signal: int, *, group: bool = False) -> None: ...
    async def wait(self) -> int:
        """The exit status. Call it after or beside ``output``; output may still follow it."""
        ...

    def release(self) -> None:
        """The guest may forget the process (it has exited, its output is handled)."""


class GuestCall:
    lane: str
    ordinal: int
    method: str
    path: str
    headers: Mapping[str, str]  # lower-case names
    body: bytes
    offset: int  # the guest has this many bytes of the answer's body already

    async def respond(self, status: int, headers: Mapping[str, str]) -> None: ...
    async def write(self, data: bytes) -> None:
        """More of the answer's body (the first byte written is the one at ``offset``); waits for the window."""

    async def end(self) -> None: ...


class GuestSession:
    """``on_call`` runs in a task of its own per call, cancelled when the guest's program hung up or the connection broke;
    the guest asks again on its next connection, then ``on_call`` is called again (with the offset reached)."""

    def __init__(self, on_call: Callable[[GuestCall], Awaitable[None]]) -> None: ...
    def connection_up(self, send: Callable[[bytes], None]) -> None: ...
    def data_received(self, data: bytes) -> None:
        """Raises ProtocolError: then drop the connection (the guest dials again)."""

    def connection_down(self) -> None: ...
    def close(self, error: PerdureError) -> None:
        """The machine is gone for good: whatever waits raises ``error``."""

    @property
    def connected(self) -> bool: ...
    @property
    def processes(self) -> Mapping[str, Process]:
        """By id: those of this session and those adopted from the guest's hello."""
        ...

    async def ready(self, timeout_s: float) -> GuestInfo: ...
    # Requests survive reconnects: each is done once.
    async def configure(self, *, hostname: str, timeout_s: float = 30) -> None: ...
    async def exec(self, spec: ExecSpec, *, process_id: str | None = None) -> Process:
        """Raises CommandNotFound (127), CommandNotExecutable (126), InvalidValue (user …)."""
        ...

    async def quiesce(self, budget_s: float) -> Quiesced: ...
    async def thaw(self) -> None: ...
    async def wake(self, realtime_s: float, entropy: bytes, identity: Identity | None = None) -> None:
        """Clock, entropy, identity, then thaw."""

    async def power_off(self) -> None: ...

    # files: paths in the image, absolute. Raise NotFound, InvalidValue, GuestFailed.
    @property
    def files(self) -> GuestFiles: ...


@dataclass(frozen=True)
class FileEntry:
    path: str  # relative to what was asked for ("" for itself)
    mode: int  # st_mode with the type bits
    uid: int
    gid: int
    size: int
    mtime_s: float
    link: str = ""  # target of a symlink


class GuestFiles:
    async def stat(self, path: str, *, follow: bool = True) -> FileEntry: ...
    async def list(self, path: str) -> list[FileEntry]: ...
    def read(self, path: str) -> AsyncIterator[bytes]: ...
    def pack(self, path: str) -> AsyncIterator[tuple[FileEntry, AsyncIterator[bytes]]]:
        """The tree at ``path``, parents first, each regular file with its content: feed it to a tar writer."""
        ...

    async def unpack(self, path: str, entries: AsyncIterator[tuple[FileEntry, AsyncIterator[bytes]]]) -> None:
        """Make each entry below the directory ``path``: the other way round."""

    async def write(self, path: str, data: AsyncIterator[bytes], *, size: int, mode: int = 0o644,
                    uid: int = 0, gid: int = 0) -> None: ...
    async def mkdir(self, path: str, *, mode: int = 0o755) -> None: ...
    async def symlink(self, path: str, target: str) -> None: ...
    async def chmod(self, path: str, mode: int) -> None: ...
    async def chown(self, path: str, uid: int, gid: int) -> None: ...
    async def remove(self, path: str) -> None: ...
