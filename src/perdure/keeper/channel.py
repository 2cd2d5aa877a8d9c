"""The guest's channel below the line: accepts guestd's vsock connection and relays its bytes, looking at none.

Firecracker connects to the Unix socket ``vsock.sock_4751`` when guestd dials the host. The newest connection counts:
a guest that dials has lost the one before. Windows (``keeper.line``) keep what is held here small on both sides, and
without a node nothing is read, so the guest holds its bytes itself.
"""

from __future__ import annotations

from perdure.execution.machine.configuration import GUEST_PORT, VSOCK_PATH
from perdure.keeper import line
from perdure.keeper.loop import READ, READ_BYTES, Loop, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

LISTEN_PATH = f"{VSOCK_PATH}_{GUEST_PORT}"


class Channel:
    """Joins the guest's newest connection with the node's. ``open`` before the machine starts, ``close`` after it."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._listener: socket.socket | None = None
        self._guest: Stream | None = None
        self._node: Stream | None = None
        self._announced = False  # the node was told of this connection of the guest
        self._echoes = (
            0  # CHANNEL_UPs that the node has not echoed: what it sends until then is for a connection before
        )
        self._credit = 0  # channel bytes that the node still takes
        self._taken = 0  # bytes that the guest took, of which the node was not told

    def open(self, listen: Callable[[str, int], socket.socket]) -> None:
        """Listen where Firecracker will connect: ``listen(name, backlog)`` makes a socket there."""
        self.close()
        self._listener = listener = listen(LISTEN_PATH, 8)
        listener.setblocking(False)
        self._loop.watch(listener.fileno(), READ, self._accept)

    def close(self) -> None:
        """Stop listening and end the guest's connection."""
        if self._listener is not None:
            self._loop.forget(self._listener.fileno())
            self._listener.close()
            self._listener = None
        self._guest_gone()

    def node_up(self, node: Stream) -> None:
        """A node takes the channel; a connection of the guest that waits unread goes to it."""
        self._node, self._echoes = node, 0
        if self._guest is not None:
            self._announce()

    def node_down(self) -> None:
        """Bytes that the former node got may be lost with it, so its connection ends; the next waits unread."""
        self._node, self._echoes = None, 0
        if self._announced:
            self._guest_gone()

    def frame(self, kind: int, payload: bytes) -> None:
        """A frame of the node that is not a control message. Raises ProtocolError."""
        if kind == line.CHANNEL_UP:
            self._echoes = max(0, self._echoes - 1)
        elif self._echoes or self._guest is None:
            return
        elif kind == line.CHANNEL:
            self._guest.write(payload)
        elif kind == line.CHANNEL_DOWN:
            self._guest_gone()
        else:
            self._credit += line.decode_window(payload)
            self._read_guest()

    def _accept(self, _mask: int) -> None:
        assert self._listener is not None
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return
        self._guest_gone()
        self._guest = Stream(
            self._loop, accepted.detach(), self._from_guest, self._guest_gone, on_sent=self._to_guest, reading=False
        )
        if self._node is not None:
            self._announce()

    def _announce(self) -> None:
        assert self._node is not None
        self._announced = True
        self._echoes += 1
        self._credit, self._taken = line.WINDOW, 0
        self._node.write(line.encode(line.CHANNEL_UP))
        self._read_guest()

    def _read_guest(self) -> None:
        if self._guest is None:
            return
        if self._credit > 0:
            self._guest.read_bytes = min(READ_BYTES, self._credit)
            self._guest.resume()
        else:
            self._guest.pause()

    def _from_guest(self, data: bytes) -> None:
        self._credit -= len(data)
        if self._node is not None:
            self._node.write(line.encode_channel(data))
        self._read_guest()

    def _to_guest(self, size_bytes: int) -> None:
        self._taken += size_bytes
        if self._node is not None and self._taken >= line.WINDOW_STEP:
            self._node.write(line.encode_window(self._taken))
            self._taken = 0

    def _guest_gone(self) -> None:
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.close()
        if self._announced:
            self._announced = False
            if self._node is not None:
                self._node.write(line.encode(line.CHANNEL_DOWN))
