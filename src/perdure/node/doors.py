"""Where clients come in: the Unix socket with its rights, and TCP, which is TLS or nothing.

Each door lets a number of connections in. To some more it says so; the rest is closed at once, so that a flood takes
neither descriptors nor memory from what is being served.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import logging
import os
import resource
import socket
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from perdure.errors import InvalidValue, NoRights, PerdureError, TooLarge, Unavailable
from perdure.host.paths import Home
from perdure.node.answers import SERVER, failure, known

HANDSHAKE_S = 10.0
REFUSED_MAX = 32  # connections that are told that there are too many
REFUSED_S = 2.0
BACKLOG = 512
AGAIN_S = 0.2  # when there are no descriptors left
DESCRIPTORS = 1 << 16

_log = logging.getLogger(__name__)


class _Handler(web.RequestHandler):
    """aiohttp's connection, which answers in JSON also where the bytes are no HTTP."""

    def __init__(self, server: web.Server, door: Door, patience_s: float) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=patience_s,  # also for the first request: until all of its header is there
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,  # a small body stays small
        )
        self._door = door

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._door.left(self)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):  # it came to no route: an Expect that nobody knows, say
            resp = failure(known(resp))
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        response = super().handle_error(request, status, exc, message)
        self._door.refused_bytes(self._door.source(self.transport), response.status)
        error: PerdureError = InvalidValue(f"this is no HTTP request: {message or exc or response.reason}"[:400])
        if exc is not None and "TooLong" in type(exc).__name__:
            error = TooLarge("the request line or a header is too long", hint="8190 bytes are the limit of each.")
        told = failure(error)
        told.headers["Server"] = SERVER
        told.force_close()
        return told


class _Full(asyncio.Protocol):
    """A connection too many, which is told so."""

    def __init__(self, door: Door, limit: int) -> None:
        self._door = door
        self._error = Unavailable(
            f"the node serves {limit} connections already", hint="Try again later, or set [node] connections higher."
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(REFUSED_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        body = failure(self._error).body
        assert isinstance(body, bytes)
        head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._transport.write(head.encode() + b"Connection: close\r\nRetry-After: 1\r\n\r\n" + body)
        self._transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._timer.cancel()
        self._door.left(self)


class Door:
    """``listening``: a bound, non-blocking socket. ``limit``: connections at once. ``patience_s``: see ``Border``.
    ``refused_bytes``: told (source, status) of connections that send no HTTP."""

    def __init__(
        self,
        listening: socket.socket,
        server: web.Server,
        *,
        tls: ssl.SSLContext | None,
        limit: int,
        patience_s: float,
        refused_bytes: Callable[[str, int], None],
    ) -> None:
        self._listening, self._server, self._tls = listening, server, tls
        self._limit, self._patience_s = limit, patience_s
        self.refused_bytes = refused_bytes
        self._inside: set[asyncio.BaseProtocol] = set()
        self._refused: set[asyncio.BaseProtocol] = set()
        self._entering: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        host, port = self._listening.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def open(self) -> None:
        """Let clients in, within the running loop."""
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """Let nobody in any more; who is inside stays."""
        tasks = [task for task in (self._accepting, *self._entering) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listening.close()

    @staticmethod
    def source(transport: asyncio.BaseTransport | None) -> str:
        peer = transport.get_extra_info("peername") if transport is not None else None
        return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix"

    def left(self, protocol: asyncio.BaseProtocol) -> None:
        self._inside.discard(protocol)
        self._refused.discard(protocol)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                link, _ = await loop.sock_accept(self._listening)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    _log.warning("no more connections: %s", error)
                    await asyncio.sleep(AGAIN_S)
                continue
            self._enter(link)

    def _enter(self, link: socket.socket) -> None:
        if len(self._inside) < self._limit:
            protocol: asyncio.BaseProtocol = _Handler(self._server, self, self._patience_s)
            self._inside.add(protocol)
        elif len(self._refused) < REFUSED_MAX:
            protocol = _Full(self, self._limit)
            self._refused.add(protocol)
        else:
            link.close()
            return
        task = asyncio.create_task(self._serve(link, protocol))
        self._entering.add(task)
        task.add_done_callback(self._entering.discard)

    async def _serve(self, link: socket.socket, protocol: asyncio.BaseProtocol) -> None:
        more: dict[str, Any] = {}
        if self._tls is not None:
            more = {"ssl": self._tls, "ssl_handshake_timeout": HANDSHAKE_S}
        try:
            if link.family != socket.AF_UNIX:
                _find_dead(link)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, link, **more)
        except (OSError, asyncio.IncompleteReadError) as error:  # ssl.SSLError is an OSError
            _log.debug("a connection was not made: %r", error)
            self.left(protocol)
            link.close()
        except BaseException:
            self.left(protocol)
            link.close()
            raise


@dataclass(frozen=True)
class Outside:
    """What a door to other machines needs; ``fingerprint``: of its certificate."""

    listening: socket.socket
    tls: ssl.SSLContext
    fingerprint: str


def _find_dead(link: socket.socket) -> None:
    """A client that vanished (tcp(7)) is noticed within two minutes."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4)):
        link.setsockopt(socket.IPPROTO_TCP, option, value)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 120_000)


def listen_unix(home: Home, group: str) -> socket.socket:
    """The home's socket: for its owner (0600), or for a group too (0660), whose members get to it and to nothing else.

    Raises InvalidValue (no such group), NoRights (its owner may not give it to that group).
    """
    gid = _gid(group) if group else None
    path = home.socket("fcrund")
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)  # nobody gets in before its rights are as they should be
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        _share(home, path, gid, group)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise InvalidValue(
            f"settings.toml: [node]: group: there is no group {group!r}", hint=f"sudo groupadd --system {group}"
        ) from None


def _share(home: Home, path: Path, gid: int | None, group: str) -> None:
    folders = [home.root, home.run] if path.parent == home.run else []
    if gid is None:
        for folder in folders:
            if folder.stat().st_mode & 0o070 == 0o010:  # a group could pass before
                _chmod(folder, ~0o070, 0)
        path.chmod(0o600)
        return
    for folder in folders:  # they may pass through; what is directly in there is closed to them
        for entry in folder.iterdir():
            if not entry.is_symlink() and entry != path and entry not in folders:
                _chmod(entry, ~0o066 if entry.is_dir() else ~0o077, 0)
    try:
        for folder in folders:
            os.chown(folder, -1, gid)
            _chmod(folder, ~0o060, 0o010)
        os.chown(path, -1, gid)
        path.chmod(0o660)
    except PermissionError as error:
        raise NoRights(
            f"settings.toml: [node]: group: this user may not give {error.filename} to group {group}",
            hint="Only root may, or a member of it: start the node as one.",
        ) from error


def _chmod(path: Path, keep: int, add: int) -> None:
    with contextlib.suppress(FileNotFoundError):  # it was just removed
        mode = stat.S_IMODE(path.stat().st_mode)
        if (wanted := mode & keep | add) != mode:
            path.chmod(wanted)


def listen_tcp(address: str) -> socket.socket:
    """Bound to HOST:PORT ([ADDRESS]:PORT for IPv6). Raises InvalidValue, Unavailable (the port is taken)."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise InvalidValue(f"[node] listen: {address!r} is no HOST:PORT", hint='For example "0.0.0.0:4760".')
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, proto)
    except OSError as error:
        raise InvalidValue(f"[node] listen: {address}: {error}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise Unavailable(
            f"the node cannot listen on {address}: {error.strerror}", hint="Choose another port."
        ) from error
    listening.setblocking(False)
    return listening


def raise_descriptors() -> None:
    """As many open files as this process may have: the usual 1024 are for programs that use select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
