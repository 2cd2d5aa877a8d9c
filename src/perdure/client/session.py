"""The client's end of a session: the streams of a process in a sandbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from perdure.errors import from_json

if TYPE_CHECKING:
    from perdure.client.websocket import WebSocket


class Session:
    """A process's standard streams: of an exec, or of a sandbox's main process (attach).

    It stays open while the sandbox is suspended, and goes on when it is resumed.
    """

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self.exit_status: int | None = None
        self.on_state: Callable[[str], None] = lambda _: None  # "suspended", "running" …

    def outputs(self) -> Iterator[tuple[int, bytes]]:
        """(STDOUT or STDERR, data) until the process ended; then ``exit_status`` is set.

        Raises CommandNotFound, CommandNotExecutable …, when it could not be started, MachineFailed when its machine
        died, Unavailable when the node went away.
        """
        for message in self._socket.messages():
            if isinstance(message, bytes):
                yield message[0], message[1:]
            elif "exit" in message:
                self.exit_status = int(message["exit"])
                return
            elif "error" in message:
                raise from_json(message["error"])
            elif "state" in message:
                self.on_state(str(message["state"]))

    def send_stdin(self, data: bytes) -> None:
        self._socket.send_bytes(data)

    def close_stdin(self) -> None:
        self._socket.send_json({"eof": True})

    def resize(self, rows: int, columns: int) -> None:
        self._socket.send_json({"resize": [rows, columns]})

    def signal(self, signal: str) -> None:
        """Send the process a signal by name ("INT")."""
        self._socket.send_json({"signal": signal})

    def close(self) -> None:
        """Detach: the process goes on."""
        self._socket.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
