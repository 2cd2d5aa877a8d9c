"""The guest's questions for names over TCP (RFC 7766): where no datagram holds the answer, or of who always asks so.

Each connection brings any number of questions, each answered when its answer is there. What a name server has to be
asked is asked over TCP too, by a connection for each question. A guest may be hostile: connections, questions under
way, sizes and the time that one may take are bounded, and what it does not read is not kept for it.
"""

from __future__ import annotations

import os
import socket
import struct

from perdure.keeper import dns
from perdure.keeper.loop import READ, Loop, Stream, harmless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from perdure.keeper.names import Names

CONNECTIONS_MAX = 32  # of a guest; one more ends the one that has been idle the longest
QUESTIONS_MAX = 16  # under way, of one connection: nothing more is read of it meanwhile
ASKING_MAX = 64  # connections to name servers
QUESTION_BYTES_MAX = 4096
UNREAD_BYTES_MAX = 256 << 10
IDLE_S = 10.0  # without a whole question
ANSWER_S = 5.0  # of one name server
PORT = 53


class NameConnections:
    """``dial``: makes a TCP socket of the host's network. What to answer is for ``names`` to say."""

    def __init__(self, loop: Loop, names: Names, dial: Callable[[], socket.socket]) -> None:
        self.loop, self.names, self.dial = loop, names, dial
        self.asking: set[_Asking] = set()
        self._listening: socket.socket | None = None
        self._connections: dict[_Connection, None] = {}  # the longest idle first

    def open(self, address: tuple[str, int]) -> None:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(CONNECTIONS_MAX)
        listening.setblocking(False)
        self._listening = listening
        self.loop.watch(listening.fileno(), READ, harmless(self._accept))

    def close(self) -> None:
        self.drop()
        if self._listening is not None:
            self.loop.forget(self._listening.fileno())
            self._listening.close()
            self._listening = None

    def drop(self) -> None:
        """End all that are open: who asked asks again."""
        for connection in list(self._connections):
            connection.close()

    def used(self, connection: _Connection) -> None:
        """It has just said something."""
        self._connections.pop(connection, None)
        self._connections[connection] = None

    def forget(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)

    def _accept(self, _mask: int) -> None:
        assert self._listening is not None
        try:
            accepted, _ = self._listening.accept()
        except OSError:
            return
        if len(self._connections) >= CONNECTIONS_MAX:
            idle = next((one for one in self._connections if not one.waits), None)
            if idle is None:
                accepted.close()
                return
            idle.close()
        self.used(_Connection(self, accepted.detach()))


class _Connection:
    """One of the guest's."""

    def __init__(self, all_: NameConnections, fd: int) -> None:
        self._all = all_
        self._asking: set[_Asking] = set()
        self._heard = bytearray()
        self._reads = False
        self._stream = Stream(all_.loop, fd, self._from_guest, self.close)
        self._deadline = all_.loop.after(IDLE_S, self._late)

    @property
    def waits(self) -> bool:
        return bool(self._asking)

    def close(self) -> None:
        self._all.loop.cancel(self._deadline)
        self._all.forget(self)
        for asking in list(self._asking):
            asking.close()
        self._asking.clear()
        self._stream.close()

    def say(self, answer: bytes) -> None:
        self._stream.write(struct.pack(">H", len(answer)) + answer)
        if self._stream.queued > UNREAD_BYTES_MAX:
            self.close()

    def answered(self, asking: _Asking, answer: bytes) -> None:
        self._asking.discard(asking)
        self._again()
        self.say(answer)
        if not self._stream.closed:
            self._read()

    def _late(self) -> None:
        if self.waits:  # for us: each question has its own time
            self._again()
        else:
            self.close()

    def _again(self) -> None:
        self._all.loop.cancel(self._deadline)
        self._deadline = self._all.loop.after(IDLE_S, self._late)

    def _from_guest(self, data: bytes) -> None:
        self._heard += data
        self._read()

    def _read(self) -> None:
        """Answer the whole questions that are there."""
        if self._reads:
            return  # a question of these was answered at once
        self._reads = True
        try:
            self._read_all()
        finally:
            self._reads = False
        if not self._stream.closed:
            if len(self._asking) < QUESTIONS_MAX:
                self._stream.resume()
            else:
                self._stream.pause()

    def _read_all(self) -> None:
        while len(self._heard) >= 2 and len(self._asking) < QUESTIONS_MAX and not self._stream.closed:
            size = int.from_bytes(self._heard[:2], "big")
            if size > QUESTION_BYTES_MAX:
                self.close()
                return
            if len(self._heard) < 2 + size:
                break
            message = bytes(self._heard[2 : 2 + size])
            del self._heard[: 2 + size]
            self._all.used(self)
            self._again()
            self._asked(message)

    def _asked(self, message: bytes) -> None:
        try:
            question = dns.Question(message)
        except dns.NOISE:
            self.close()  # nobody who means it sends this
            return
        if not question.is_asked:
            self.close()
            return
        answer = self._all.names.decide(question)
        if answer is not None:
            self.say(answer)
        elif len(self._all.asking) >= ASKING_MAX:
            self.say(question.reply(code=dns.SERVER_FAILED))
        else:
            asking = _Asking(self._all, question, self.answered)
            self._asking.add(asking)
            asking.begin()


class _Asking:
    """One question, asked of one name server after the other; ``on_answer(self, answer)`` once, whatever it is."""

    def __init__(
        self, all_: NameConnections, question: dns.Question, on_answer: Callable[[_Asking, bytes], None]
    ) -> None:
        self._all, self._question, self._on_answer = all_, question, on_answer
        self._servers = list(all_.names.servers)
        self._heard = bytearray()
        self._stream: Stream | None = None
        self._deadline = 0
        self._number = b""
        all_.asking.add(self)

    def begin(self) -> None:
        """Ask the next one."""
        self._leave()
        while self._servers:
            server = self._servers.pop(0)
            try:
                fd = self._connect(server)
            except OSError:
                continue
            self._heard.clear()
            self._stream = Stream(self._all.loop, fd, self._from_server, self.begin)
            self._deadline = self._all.loop.after(ANSWER_S, self.begin)
            self._number = os.urandom(2)
            message = self._number + self._question.asking
            self._stream.write(struct.pack(">H", len(message)) + message)
            return
        self._finish(self._question.reply(code=dns.SERVER_FAILED))

    def close(self) -> None:
        self._leave()
        self._all.asking.discard(self)

    def _connect(self, server: str) -> int:
        dialing = self._all.dial()
        try:
            dialing.setblocking(False)
            dialing.connect_ex((server, PORT))  # what comes of it the stream sees
        except BaseException:
            dialing.close()
            raise
        return dialing.detach()

    def _leave(self) -> None:
        if self._stream is not None:
            self._all.loop.cancel(self._deadline)
            self._stream.close()
            self._stream = None

    def _from_server(self, data: bytes) -> None:
        self._heard += data
        size = int.from_bytes(self._heard[:2], "big") if len(self._heard) >= 2 else dns.MESSAGE_MAX
        if len(self._heard) < 2 + size:
            return
        answer = bytes(self._heard[2 : 2 + size])
        try:
            ours = answer[:2] == self._number and self._question.is_answered_by(answer)
        except dns.NOISE:
            ours = False
        if ours:
            self._finish(self._all.names.pass_on(self._question, answer))
        else:
            self.begin()

    def _finish(self, answer: bytes) -> None:
        self.close()
        self._on_answer(self, answer)
