"""This terminal joined to a process in a sandbox: raw mode, sizes, signals, piped stdin."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from perdure.client.node import STDOUT, NodeClient
from perdure.client.session import Session
from perdure.errors import InvalidValue, PerdureError, Unavailable

CHUNK_BYTES = 1 << 16
DETACH_KEYS = "ctrl-p,ctrl-q"  # as docker
DETACHED = -1
CONTROLS = "abcdefghijklmnopqrstuvwxyz@[\\]^_"
PROXIED = ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2")

Forward = tuple[Callable[..., None], tuple[Any, ...]]


def check_tty(*, tty: bool, stdin: bool) -> None:
    """Raises InvalidValue when a terminal is asked for and there is none to read from."""
    if tty and stdin and not os.isatty(0):
        raise InvalidValue("the input device is not a TTY", hint="Leave -t out when stdin is piped.")


def keys_of(text: str) -> bytes:
    """The bytes of keys as docker's ``--detach-keys`` names them: ``a``, ``ctrl-a`` to ``ctrl-z``, ``ctrl-@`` and
    so on (CONTROLS), with commas between. Raises InvalidValue."""
    found = bytearray()
    for key in text.split(","):
        control = key.removeprefix("ctrl-")
        if len(key) == 1 and key.isascii():
            found.append(ord(key))
        elif key != control and len(control) == 1 and control in CONTROLS:
            found.append(ord(control.upper()) & 0x1F)
        else:
            raise InvalidValue(f"--detach-keys: {key!r} is no key", hint="Write ctrl-p,ctrl-q, or one letter.")
    return bytes(found)


def size() -> tuple[int, int]:
    """(rows, columns) of this terminal; (0, 0) without one."""
    for descriptor in (1, 0, 2):
        try:
            columns, rows = os.get_terminal_size(descriptor)
            return rows, columns
        except OSError:
            continue
    return 0, 0


class Terminal:
    """Serves one process. Sessions may follow one another when the node is restarted."""

    def __init__(self, *, tty: bool, stdin: bool, detach_keys: str = "", sig_proxy: bool = True) -> None:
        """detach_keys: see ``keys_of``. sig_proxy: signals go to the process."""
        self._tty = tty
        self._keys = keys_of(detach_keys or DETACH_KEYS)
        self._sig_proxy = sig_proxy
        self._stdin = stdin
        self._session: Session | None = None
        self._replaced = threading.Condition()
        self._detached = False
        # handlers only put here: sending from a handler could meet its own thread in the middle of a send
        self._wishes: queue.SimpleQueue[Forward] = queue.SimpleQueue()
        self._skip = {1: 0, 2: 0}
        self._seen = {1: 0, 2: 0}
        self._readers_started = False

    def run(self, session: Session, *, skip_seen: bool = False) -> int:
        """Until the process has ended: its exit status; DETACHED after ctrl-p ctrl-q.

        skip_seen: the session tells all from the start again; what was shown is not shown twice.
        """
        with self._replaced:
            self._session = session
            self._replaced.notify_all()
        self._skip = dict(self._seen) if skip_seen else {1: 0, 2: 0}
        with _raw(self._tty and self._stdin), self._signals():
            self._start_readers()
            if self._tty:
                self._resize()
            try:
                for stream, data in session.outputs():
                    self._show(stream, data)
            except Unavailable:
                if self._detached:
                    return DETACHED
                raise
        if session.exit_status is None:
            raise Unavailable("the node closed the session before the process ended")
        return session.exit_status

    def _show(self, stream: int, data: bytes) -> None:
        skipped = min(self._skip[stream], len(data))
        self._skip[stream] -= skipped
        rest = memoryview(data)[skipped:]
        self._seen[stream] += len(rest)
        while rest:
            rest = rest[os.write(1 if stream == STDOUT else 2, rest) :]

    def _start_readers(self) -> None:
        if self._readers_started:
            return
        self._readers_started = True
        threading.Thread(target=self._send_wishes, daemon=True).start()
        if self._stdin:
            threading.Thread(target=self._send_stdin, daemon=True).start()

    def _send_wishes(self) -> None:
        while True:
            send, arguments = self._wishes.get()
            try:
                send(self._session, *arguments)
            except PerdureError:
                pass  # the session ended; the main thread knows why

    def _send_stdin(self) -> None:
        held = b""  # the first of the keys: they are the process's only if the others do not follow
        while True:
            try:
                data = os.read(0, CHUNK_BYTES)
            except OSError:
                data = b""
            over = not data
            keys = held + data
            before, detach, _ = keys.partition(self._keys) if self._tty else (keys, b"", b"")
            held = self._begun(before) if self._tty and not over and not detach else b""
            if send := before[: len(before) - len(held)]:
                self._deliver(send)
            if detach:
                self._detached = True
                if self._session is not None:
                    self._session.close()
                return
            if over:
                self._deliver(b"")
                return

    def _begun(self, data: bytes) -> bytes:
        """The end of it that the detach keys begin with."""
        longest = min(len(data), len(self._keys) - 1)
        ends = (data[len(data) - size :] for size in range(longest, 0, -1))
        return next((end for end in ends if self._keys.startswith(end)), b"")

    def _deliver(self, data: bytes) -> None:
        """Send stdin (its end where empty); when the session breaks, wait for the one that follows it."""
        while True:
            session = self._session
            try:
                if session is not None:
                    session.send_stdin(data) if data else session.close_stdin()
                    return
            except PerdureError:
                pass  # the node was killed, or all is over and this thread ends with the program
            with self._replaced:
                self._replaced.wait_for(lambda was=session: self._session is not was)  # type: ignore[misc]

    def _resize(self) -> None:
        rows, columns = size()
        if rows and columns:
            self._wishes.put((Session.resize, (rows, columns)))

    def _pass_on(self, number: int, _: object) -> None:
        self._wishes.put((Session.signal, (signal.Signals(number).name,)))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        former: dict[int, Any] = {}
        if self._tty:
            former[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: self._resize())
        # in raw mode ctrl-c is a byte of stdin; a signal is then meant for fcrun, and still passed on
        for name in PROXIED if self._sig_proxy else ():
            number = signal.Signals[f"SIG{name}"]
            former[number] = signal.signal(number, self._pass_on)
        try:
            yield
        finally:
            for known, handler in former.items():
                signal.signal(known, handler)


@contextmanager
def _raw(wanted: bool) -> Iterator[None]:
    """Keys go to the sandbox as they are; the terminal is put back in any case."""
    if not wanted or not os.isatty(0):
        yield
        return
    import termios
    import tty

    former = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead is not lost
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, former)
        sys.stderr.flush()


def follow_main(
    client: NodeClient,
    ref: str,
    session: Session,
    *,
    tty: bool,
    stdin: bool,
    from_start: bool = False,
    detach_keys: str = "",
    sig_proxy: bool = True,
) -> int:
    """Join this terminal to a sandbox's main process until it exits; the status to exit with.

    from_start: the session tells all of it; then it goes on over a restart of the node, whose log has the rest.
    """
    terminal, again = Terminal(tty=tty, stdin=stdin, detach_keys=detach_keys, sig_proxy=sig_proxy), False
    while True:
        try:
            with session:
                status = terminal.run(session, skip_seen=again)
            return 0 if status == DETACHED else status
        except Unavailable:
            if not from_start:
                raise
        again = True
        client.ensure()
        session = client.attach(ref, logs=True)
