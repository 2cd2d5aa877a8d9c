"""Connections to the ports of a guest, by way of its keeper (``keeper.relay``)."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from perdure.errors import ProtocolError, Unavailable, from_json
from perdure.keeper import line
from perdure.model import LauncherAddress

TIMEOUT_S = 15.0  # the keeper's own is 10 s
BUFFER_BYTES = 64 << 10
_HEADER_BYTES = 5


async def dial(
    address: LauncherAddress, sandbox_id: str, protocol: str, port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a port of the sandbox's guest. A datagram of ``udp`` has its length before it: u16, big endian.

    Raises Unavailable (nobody listens there, or does not answer), NotFound (no machine runs).
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            if address.unix_path:
                reader, writer = await asyncio.open_unix_connection(address.unix_path, limit=BUFFER_BYTES)
            else:
                where = (address.tcp_host, address.tcp_port)
                reader, writer = await asyncio.open_connection(*where, limit=BUFFER_BYTES)
                made: socket.socket = writer.get_extra_info("socket")
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                keep_alive(made)  # an emulated host that ends does not say so
            try:
                hello = {"op": "hello", "version": line.VERSION, "token": address.token, "want": "dial"}
                wish = {"sandbox": sandbox_id, "protocol": protocol, "port": port}
                writer.write(line.encode_control(hello | wish))
                answer = await _answer(reader)
                if "error" in answer:
                    raise from_json(answer["error"])
            except BaseException:
                writer.transport.abort()
                raise
            return reader, writer
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        raise Unavailable(f"port {port} of sandbox {sandbox_id} does not answer: {str(error) or 'timed out'}") from None


def keep_alive(connection: socket.socket) -> None:
    """Notice within two minutes that nobody is at the other end any more."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


async def _answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The first frame; what follows it are the connection's own bytes."""
    head = await reader.readexactly(_HEADER_BYTES)
    length = int.from_bytes(head[:4], "little") - 1
    if head[4] != line.CONTROL or not 0 <= length <= line.FRAME_MAX:
        raise ProtocolError("the keeper's answer is no control message")
    return line.decode_control(await reader.readexactly(length))
