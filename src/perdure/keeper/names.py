"""Answers the guest's questions for names (DNS, RFC 1035): those of its networks, then those of the world.

The guest asks at its way out, 172.31.255.1, in datagrams or over TCP (``keeper.nameconnections``). Names of other
sandboxes come from a table that the node keeps; all else is asked of the host's name servers, by sockets of the host's
network. Where egress is restricted, only permitted names are asked for, and what they stand for is opened
(``permit``) before the guest hears of it: what it looks up elsewhere, or makes up, stays closed.
"""

from __future__ import annotations

import os
import socket
import struct
import time

from perdure.execution.machine import configuration
from perdure.keeper import dns
from perdure.keeper.loop import READ, Loop, harmless
from perdure.keeper.nameconnections import NameConnections

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Hosts = list[str]  # the class has a method ``list``
    Client = tuple[str, int] | None  # None: this keeper itself
    Asked = tuple[Client, dns.Question, float, str]  # when, and of which server

PORT = 53
_PENDING_MAX = 512  # questions under way; a guest that floods is answered "server failed"
_PATIENCE_S = 10.0
_AGAIN_S, _TRIES = 2.0, 3  # of our own questions
_KNOWN_MAX = 64


class Names:
    """``upstream`` is made by ``outside()`` before the keeper leaves the host's network; ``dial`` makes a TCP socket of
    that network at any time."""

    def __init__(
        self,
        loop: Loop,
        upstream: socket.socket,
        permit: Callable[[list[str]], None],
        dial: Callable[[], socket.socket],
    ) -> None:
        self._loop, self._upstream, self._permit = loop, upstream, permit
        self._table: Mapping[str, str] = {}
        self.servers: Sequence[str] = ()
        self._allowed: Sequence[str] | None = None
        self._pending: dict[int, Asked] = {}
        self._opened: dict[str, float] = {}  # names by which addresses were opened, and when; the newest last
        self._looking: dict[str, dns.Question] = {}  # what is asked for without a guest, by name in lower case
        self._on_looked: Callable[[], None] = lambda: None
        self._listening: socket.socket | None = None
        self._connections = NameConnections(loop, self, dial)

    @staticmethod
    def outside() -> socket.socket:
        """The socket that name servers are asked by, in the network of the moment."""
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        asking.bind(("", 0))
        asking.setblocking(False)
        return asking

    def open(self) -> None:
        """Listen in the machine's network."""
        listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        listening.bind((configuration.HOST_ADDRESS, PORT))
        listening.setblocking(False)
        self._listening = listening
        self._loop.watch(listening.fileno(), READ, harmless(self._asked))
        self._loop.watch(self._upstream.fileno(), READ, harmless(self._answered))
        self._connections.open((configuration.HOST_ADDRESS, PORT))

    def close(self) -> None:
        for one in (self._listening, self._upstream):
            if one is not None:
                self._loop.forget(one.fileno())
                one.close()
        self._listening = None
        self._connections.close()

    def know(self, servers: Sequence[str], allowed: Sequence[str] | None) -> None:
        """Whom to ask, and for which names only (None: for all); ``*.example.org`` is all below it."""
        self.servers, self._allowed = list(servers), allowed
        self._looking.clear()
        self._pending.clear()  # their answers are not waited for: who asked asks again
        self._connections.drop()

    def list(self, table: Mapping[str, str]) -> None:
        """The names of other sandboxes, with their addresses."""
        self._table = {name.lower(): address for name, address in table.items()}

    # What is said to whom

    def decide(self, question: dns.Question) -> bytes | None:
        """The answer that is known here; None: a name server has to be asked."""
        name, kind = question.name, question.kind
        if name in self._table:
            return question.reply([self._table[name]] if kind == dns.A else [])
        if not self.servers or not self._is_allowed(name):
            return question.reply(code=dns.NO_SUCH_NAME)
        return question.reply() if kind == dns.AAAA else None  # there is no IPv6 in here

    def pass_on(self, question: dns.Question, answer: bytes) -> bytes:
        """A name server's answer as the guest gets it; what the name stands for is open then."""
        if self._allowed is not None:
            is_exact = question.name in self._allowed
            try:
                found = question.addresses(answer)
                if opened := [one for one in found if dns.may_be_opened(one, is_exact=is_exact)]:
                    self._permit(opened)
                    self._opened.pop(question.name, None)
                    self._opened[question.name] = time.monotonic()
                    if len(self._opened) > _KNOWN_MAX:
                        del self._opened[next(iter(self._opened))]
            except (*dns.NOISE, OSError):
                return question.reply(code=dns.SERVER_FAILED)
        return struct.pack(">H", question.number) + answer[2:]

    def _is_allowed(self, name: str) -> bool:
        if self._allowed is None:
            return True
        return any(
            name == wanted or (wanted.startswith("*.") and name.endswith(wanted[1:])) for wanted in self._allowed
        )

    # From the guest

    def _asked(self, _mask: int) -> None:
        assert self._listening is not None
        try:
            data, client = self._listening.recvfrom(dns.MESSAGE_MAX)
        except OSError:
            return
        try:
            question = dns.Question(data)
        except dns.NOISE:
            return  # nobody who means it sends this
        if not question.is_asked:
            return
        answer = self.decide(question)
        if answer is not None or not self._ask(client, question):
            self._say(client, answer or question.reply(code=dns.SERVER_FAILED))

    def _ask(self, client: Client, question: dns.Question) -> bool:
        """False: there are too many already, or no server can be asked."""
        now, first = time.monotonic(), 0
        for own, (who, before, when, server) in list(self._pending.items()):
            if who == client and before.number == question.number and before.data == question.data:
                first = self.servers.index(server) + 1  # it asks again: the one before may be away
                del self._pending[own]
            elif now - when > _PATIENCE_S:
                del self._pending[own]
        if len(self._pending) >= _PENDING_MAX:
            return False
        own = int.from_bytes(os.urandom(2), "big")
        while own in self._pending:
            own = (own + 1) & 0xFFFF
        for place in range(first, first + len(self.servers)):
            server = self.servers[place % len(self.servers)]
            try:
                self._upstream.sendto(struct.pack(">H", own) + question.asking, (server, PORT))
            except OSError:  # there is no way to this one
                continue
            self._pending[own] = (client, question, now, server)
            return True
        return False

    # By itself

    def opened(self, within_s: float) -> Hosts:
        """The names by which addresses were opened lately."""
        since = time.monotonic() - within_s
        return [name for name, when in self._opened.items() if when >= since]

    def look_up(self, names: Iterable[str], on_done: Callable[[], None]) -> None:
        """Ask for permitted names, and open what they stand for now; in the background, and silently if that fails.

        ``on_done``: all are answered, or were asked for in vain; not called where something is known anew before.
        """
        self._on_looked = on_done
        wanted = names if self.servers and self._allowed is not None else ()
        for name in [name for name in wanted if self._is_allowed(name)][:_KNOWN_MAX]:
            try:
                self._looking[name] = dns.question_for(name)
            except ValueError:
                continue
        if not self._looking:
            on_done()
        for question in list(self._looking.values()):
            self._look_up(question, _TRIES)

    def _look_up(self, question: dns.Question, tries: int) -> None:
        if self._looking.get(question.name) is not question:
            return  # it is answered, or nobody waits for it any more
        if tries and self._ask(None, question):
            self._loop.after(_AGAIN_S, lambda: self._look_up(question, tries - 1))
        else:
            self._looked_up(question)

    def _looked_up(self, question: dns.Question) -> None:
        if self._looking.get(question.name) is question:
            del self._looking[question.name]
            if not self._looking:
                self._on_looked()

    # From a name server

    def _answered(self, _mask: int) -> None:
        try:
            data, (address, port) = self._upstream.recvfrom(dns.MESSAGE_MAX)
        except OSError:
            return
        own = int.from_bytes(data[:2], "big")
        asked = self._pending.get(own)
        if asked is None or port != PORT or address != asked[3]:
            return
        client, question, _, _ = asked
        try:
            if not question.is_answered_by(data):
                return  # somebody guesses
        except dns.NOISE:
            return
        del self._pending[own]
        answer = self.pass_on(question, data)
        if client is not None:
            self._say(client, answer)
        else:
            self._looked_up(question)

    def _say(self, client: tuple[str, int], data: bytes) -> None:
        assert self._listening is not None
        try:
            self._listening.sendto(data, client)
        except OSError:
            pass  # its queue is full: it asks again
