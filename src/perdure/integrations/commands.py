"""A command in a sandbox, run to its end within some time, of whose output so much is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perdure.errors import Conflict, PerdureError, Unavailable
from perdure.formats.logs import STDERR, STDOUT
from perdure.model import ExecSpec

if TYPE_CHECKING:
    from perdure.client.node import NodeClient
    from perdure.client.session import Session

KILLED_S = 5.0  # within which a killed process is told to have ended
STDIN_BYTES = 1 << 20  # of one message


@dataclass
class Finished:
    """How a command ended. exit_status None: it had not when the time was over, and was killed."""

    exit_status: int | None
    stdout: bytes
    stderr: bytes
    dropped_bytes: int = 0  # of its output, above what was to be kept


class Command:
    """A command that one thread waits for, and others may end."""

    def __init__(
        self,
        client: NodeClient,
        ref: str,
        spec: ExecSpec,
        *,
        stdin: bytes = b"",
        timeout_s: float | None = None,
        keep_bytes: int | None = None,
    ) -> None:
        """timeout_s: then it is killed, but not what it started. keep_bytes: of each stream the first so many; all of
        it is read."""
        self._client, self._ref, self._spec = client, ref, spec
        self._stdin, self._timeout_s, self._keep_bytes = stdin, timeout_s, keep_bytes
        self._is_over = threading.Event()
        self._timers: list[threading.Timer] = []
        self._session: Session | None = None

    def finish(self) -> Finished:
        """Run it to its end; a sandbox that sleeps is woken first. CommandNotFound, CommandNotExecutable,
        Unavailable."""
        kept: dict[int, bytearray] = {STDOUT: bytearray(), STDERR: bytearray()}
        dropped = 0
        with self._client.exec(self._ref, self._spec) as session:
            self._session = session
            if self._is_over.is_set():
                self.end()
            elif self._timeout_s is not None:
                self._later(self._timeout_s, self.end)
            if self._spec.stdin:
                threading.Thread(target=_give, args=(session, self._stdin), daemon=True).start()
            try:
                for stream, data in session.outputs():
                    room = len(data) if self._keep_bytes is None else max(0, self._keep_bytes - len(kept[stream]))
                    kept[stream] += data[:room]
                    dropped += len(data) - len(data[:room])
            except PerdureError:
                if not self._is_over.is_set():
                    raise
            finally:
                for timer in self._timers:
                    timer.cancel()
        status = None if self._is_over.is_set() else session.exit_status
        if status is None and not self._is_over.is_set():
            raise Unavailable("the node closed the session before the process ended", hint="Run it again.")
        return Finished(status, bytes(kept[STDOUT]), bytes(kept[STDERR]), dropped)

    def end(self) -> None:
        """Kill it; and hang up, should that not be heeded."""
        self._is_over.set()
        if self._session is None:
            return  # it has not begun: it ends when it does
        self._later(KILLED_S, self._session.close)
        try:
            self._session.signal("KILL")
        except PerdureError:
            pass  # it ended in this moment

    def _later(self, seconds: float, function: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, function)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()


def _give(session: Session, stdin: bytes) -> None:
    """Beside the output: one that is not read would hold up the other."""
    try:
        for begin in range(0, len(stdin), STDIN_BYTES):
            session.send_stdin(stdin[begin : begin + STDIN_BYTES])
        session.close_stdin()
    except (Unavailable, Conflict):
        pass  # it ended without reading all of it
