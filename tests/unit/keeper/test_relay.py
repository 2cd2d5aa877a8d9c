"""Connections into a guest, relayed by the kernel: a server of the test's own stands for the guest."""

from __future__ import annotations

import ast

from perdure.testing import namespaces

# The guest's address is one of this network's loopback.
WORLD = """
import json, os, socket, threading
from perdure.keeper import line
from perdure.keeper.loop import Loop
from perdure.keeper.relay import Relays
from perdure.linux.links import Links

def say(*values):
    print(values[0] if len(values) == 1 else values)

links = Links()
links.up("lo")
links.add_address("lo", "172.31.255.2", 32)
loop = Loop()
relays = Relays(loop)
fds = lambda: len(os.listdir("/proc/self/fd"))

def dial(port, protocol="tcp"):
    ours, theirs = socket.socketpair()
    relays.open(theirs.detach(), {"protocol": protocol, "port": port})
    ours.settimeout(10)
    return ours

def said(connection):
    head = connection.recv(5, socket.MSG_WAITALL)
    return json.loads(connection.recv(int.from_bytes(head[:4], "little") - 1, socket.MSG_WAITALL))

def in_background(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread

def turn_while(thread):
    while thread.is_alive():
        loop.turn(0.05)
    thread.join()
"""


def _said(program: str) -> list[object]:
    namespaces.require_rights()
    return [ast.literal_eval(line) for line in namespaces.run(WORLD + program).splitlines()]


def test_bytes_go_both_ways_and_each_way_ends_by_itself() -> None:
    assert _said("""
before = fds()
server = socket.create_server(("172.31.255.2", 80))
result = []
def serve():
    guest, _ = server.accept()
    data = b""
    while more := guest.recv(65536):
        data += more
    guest.sendall(data[::-1])
    guest.close()
def ask():
    connection = dial_made
    result.append(said(connection))
    connection.sendall(payload)
    connection.shutdown(socket.SHUT_WR)
    data = b""
    while more := connection.recv(65536):
        data += more
    result.append(data == payload[::-1])
    connection.close()
payload = os.urandom(5 << 20)
dial_made = dial(80)
in_background(serve)
turn_while(in_background(ask))
while len(relays):
    loop.turn(1)
server.close()
say(result, fds() - before)
""") == [([{"ok": {}}, True], 0)]


def test_what_cannot_be_reached_is_said_and_let_go_of() -> None:
    (said,) = _said("""
before = fds()
answers = []
for port, protocol in ((81, "tcp"), (0, "tcp"), (70000, "tcp"), ("x", "tcp"), (80, "sctp")):
    connection = dial(port, protocol)
    while len(relays):
        loop.turn(1)
    loop.turn(0)
    answers.append(said(connection)["error"]["message"])
    connection.close()
say((answers, fds() - before))
""")
    answers, left = said  # type: ignore[misc]
    assert left == 0
    assert "port 81 of the sandbox: Connection refused" in answers[0]
    assert all("port" in answer for answer in answers[1:4]) and "sctp" in answers[4]


def test_one_side_that_breaks_ends_the_other() -> None:
    assert _said("""
import struct
before = fds()
server = socket.create_server(("172.31.255.2", 80))
connection = dial(80)
loop.turn(5)
guest, _ = server.accept()
assert said(connection) == {"ok": {}}
guest.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
guest.close()  # a reset
while len(relays):
    loop.turn(1)
say(connection.recv(1))
connection.close()
left = dial(80)
loop.turn(5)
guest, _ = server.accept()
relays.close()
try:
    guest.recv(1)
except ConnectionResetError:  # at once: a guest that is gone would never answer to an end
    say("reset", len(relays))
guest.close(); left.close(); server.close()
say(fds() - before)
""") == [b"", ("reset", 0), 0]


def test_datagrams_keep_their_borders() -> None:
    assert _said("""
before = fds()
guest = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
guest.bind(("172.31.255.2", 53))
guest.settimeout(5)
connection = dial(53, "udp")
loop.turn(5)
assert said(connection) == {"ok": {}}
connection.sendall(b"\\0\\3one\\0\\0\\0")
loop.turn(5)
connection.sendall(b"\\3two")
loop.turn(5)
heard = [guest.recvfrom(100) for _ in range(3)]
guest.sendto(b"back", heard[0][1])
loop.turn(5)
say([data for data, _ in heard], connection.recv(100))
connection.close()
while len(relays):
    loop.turn(1)
guest.close()
say(fds() - before)
""") == [([b"one", b"", b"two"], b"\0\4back"), 0]


def test_one_connection_too_many_ends_alone() -> None:
    assert _said("""
import resource
server = socket.create_server(("172.31.255.2", 80), backlog=200)
first = dial(80)
loop.turn(5)
guest, _ = server.accept()
assert said(first) == {"ok": {}}
resource.setrlimit(resource.RLIMIT_NOFILE, (fds() + 40, fds() + 40))
others = []
try:
    while True:
        others.append(dial(80))
        loop.turn(1)
except OSError:
    pass  # this end has no descriptor left either
for _ in range(20):
    loop.turn(0.01)
for one in others:
    one.close()
for _ in range(200):
    loop.turn(0.01)
first.sendall(b"still here")
loop.turn(5)
say(guest.recv(100))
""") == [b"still here"]
