"""Questions for names over TCP: of a real resolver (glibc's), and of a guest that means no good."""

from __future__ import annotations

import ast
import shutil

import pytest

from perdure.testing import namespaces

# The keeper's end has 172.31.255.1; name servers are at 192.0.2.53 (as told below) and at 192.0.2.54 (nobody).
WORLD = """
import os, socket, struct, subprocess, sys, tempfile, threading, time
from perdure.keeper import nameconnections
from perdure.keeper.loop import Loop
from perdure.keeper.names import Names
from perdure.linux.links import Links

links = Links()
links.up("lo")
for address in ("172.31.255.1", "192.0.2.53", "192.0.2.54"):
    links.add_address("lo", address, 32)
loop, permitted, heard = Loop(), [], []

def question(name, number=7, kind=1):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">HHHHHH", number, 0x100, 1, 0, 0, 0) + labels + b"\\0" + struct.pack(">HH", kind, 1)

def answer(data, addresses=(), flags=0x8180):
    end = data.index(b"\\0", 12) + 5
    head = data[:2] + struct.pack(">HHHHH", flags, 1, len(addresses), 0, 0)
    record = struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4)
    return head + data[12:end] + b"".join(record + socket.inet_aton(one) for one in addresses)

MANY = [f"192.0.2.{number}" for number in range(100, 200)]  # 1,600 bytes

def serve_datagrams(bound):
    while True:
        data, client = bound.recvfrom(4096)
        heard.append("udp")
        bound.sendto(answer(data, flags=0x8380), client)  # truncated: too much for a datagram

def exactly(connection, size):
    data = b""
    while len(data) < size:
        if not (more := connection.recv(size - len(data))):
            return b""
        data += more
    return data

def said(connection):
    size = exactly(connection, 2)
    return exactly(connection, int.from_bytes(size, "big")) if size else b""

def framed(data):
    return struct.pack(">H", len(data)) + data

def serve_connections(listening, reply):
    while True:
        connection, _ = listening.accept()
        data = said(connection)
        heard.append("tcp")
        for part in reply(data):
            connection.sendall(part)
        held.append(connection)
held = []

def serve(reply):
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("192.0.2.53", 53))
    threading.Thread(target=serve_datagrams, args=(bound,), daemon=True).start()
    listening = socket.create_server(("192.0.2.53", 53))
    threading.Thread(target=serve_connections, args=(listening, reply), daemon=True).start()

def whole(data):
    return [framed(answer(data, MANY))]

names = Names(loop, Names.outside(), permitted.extend, socket.socket)
names.open()

def dial():
    return socket.create_connection(("172.31.255.1", 53), 5)

def say(*values):
    print(values[0] if len(values) == 1 else values)

def wait(done):
    # for what a thread or another process does, too
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, "too late"
        loop.turn(0.01)
        peaks.append(len(names._connections.asking))
peaks = []

def receive(connection, count):
    # so many answers; fewer where the connection ended
    got = []
    def read():
        try:
            while len(got) < count and (data := said(connection)):
                got.append(data)
        except TimeoutError:
            got.append(b"late")
        except OSError:
            pass
    thread = threading.Thread(target=read)
    thread.start()
    wait(lambda: not thread.is_alive())
    return got

def resolve(name, options=""):
    # by glibc, whose name server is the keeper
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(f"nameserver 172.31.255.1\\noptions timeout:8 attempts:1 {options}\\n")
        file.flush()
        script = f"mount --bind {file.name} /etc/resolv.conf && exec getent -s dns ahosts {name}"
        began = time.monotonic()
        process = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
        wait(lambda: process.poll() is not None)
        found = {line.split()[0] for line in process.stdout.read().splitlines()}
        return len(found), time.monotonic() - began < 6
"""


def _said(program: str) -> list[object]:
    namespaces.require_rights()
    return [ast.literal_eval(line) for line in namespaces.run(WORLD + program).splitlines()]


@pytest.mark.skipif(shutil.which("getent") is None, reason="getent (glibc) is not installed")
def test_a_resolver_gets_what_no_datagram_holds() -> None:
    assert _said("""
serve(whole)
names.know(["192.0.2.53"], ["large.test"])
say(resolve("large.test"), sorted(set(permitted)) == MANY, heard[0], "tcp" in heard)
heard.clear(); permitted.clear()
say(resolve("large.test", "use-vc"), sorted(set(permitted)) == MANY, set(heard))
heard.clear()
names.list({"web": "10.89.0.2"})
say(resolve("other.test", "use-vc"), resolve("web", "use-vc"), heard)
""") == [
        ((100, True), True, "udp", True),
        ((100, True), True, {"tcp"}),
        ((0, True), (1, True), []),
    ]


def test_nobody_waits_for_ipv6() -> None:
    assert _said("""
serve(whole)
names.know(["192.0.2.53"], None)
connection = dial()
connection.sendall(framed(question("example.org", kind=28)) + framed(question("example.org", 8)))
first, second = receive(connection, 2)
say(first[:2] == b"\\0\\7", first[3] & 15, first[6:8], second[:2] == b"\\0\\x08", len(second) > 1600, heard)
""") == [(True, 0, b"\0\0", True, True, ["tcp"])]


def test_a_server_that_is_away_or_answers_something_else_is_not_the_last() -> None:
    assert _said("""
def noise(data):
    other = {0: answer(data[:12] + question("evil.test")[12:], ["192.0.2.66"]), 1: b"\\0" * 30}
    return [framed(other[len(held)])] if len(held) in other else [framed(answer(data, MANY))]
serve(noise)
names.know(["192.0.2.54", "192.0.2.53", "192.0.2.53", "203.0.113.1", "192.0.2.53"], ["good.test"])
connection = dial()
connection.sendall(framed(question("good.test")))
(said_,) = receive(connection, 1)
say(said_[3] & 15, sorted(permitted) == MANY, len(heard))
names.know(["192.0.2.54"], ["good.test"])
say(receive(connection, 1))  # what was open is closed: who asked asks again
connection = dial()
connection.sendall(framed(question("good.test")))
say(receive(connection, 1)[0][3] & 15)
""") == [(0, True, 3), [], 2]


def test_an_answer_that_comes_in_pieces() -> None:
    assert _said("""
serve(lambda data: [framed(answer(data, MANY))[at : at + 100] for at in range(0, 1700, 100)])
names.know(["192.0.2.53"], None)
connection = dial()
for byte in framed(question("example.org")):
    connection.sendall(bytes([byte]))
    loop.turn(0.01)
say(len(receive(connection, 1)[0]) == len(answer(question("example.org"), MANY)))
""") == [True]


def test_a_guest_that_means_no_good_holds_little() -> None:
    assert _said("""
nameconnections.IDLE_S = 0.3
names.list({"web": "10.89.0.2"})
held_ = []
for _ in range(60):
    held_.append(dial())
    loop.turn(0)
wait(lambda: len(names._connections._connections) == nameconnections.CONNECTIONS_MAX)
say(receive(held_[0], 1))  # the first was idle the longest
slow = dial()
slow.sendall(framed(question("web"))[:-1])
say(receive(slow, 1))  # and these were idle for too long
wait(lambda: not names._connections._connections)
nameconnections.IDLE_S = 60
update = question("web")[:2] + b"\\x28" + question("web")[3:]
for noise in (b"\\xff\\xff", framed(b"\\0" * 40), framed(b""), framed(update)):
    bad = dial()
    bad.sendall(noise)
    say(receive(bad, 1))
good = dial()
good.sendall(framed(question("web")) * 3000)
say(len(receive(good, 3000)))
names.know(["203.0.113.1"], None)  # there is no way to it: all is answered at once
hasty = dial()
hasty.sendall(framed(question("example.org")) * 2000)
say({said_[3] & 15 for said_ in receive(hasty, 2000)})
unread = dial()
unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
unread.setblocking(False)
sent = 0
while names._connections._connections or not sent:  # it asks, and never reads
    try:
        sent += unread.send(framed(question("web")) * 1000)
    except BlockingIOError:
        pass
    except OSError:
        break
    loop.turn(0.01)
say(sent > 0)
""") == [[], [], [], [], [], [], 3000, {2}, True]


def test_questions_under_way_are_bounded_and_end() -> None:
    assert _said("""
serve(lambda data: [])
names.know(["192.0.2.53"], None)
nameconnections.ANSWER_S = 0.5
asking = [dial() for _ in range(6)]
questions = b"".join(framed(question("example.org", number)) for number in range(40))
asking[0].sendall(questions)
one = {said_[3] & 15 for said_ in receive(asking[0], 40)}
say(one, max(peaks) == nameconnections.QUESTIONS_MAX)
for each in asking:
    each.sendall(questions)
say({said_[3] & 15 for each in asking for said_ in receive(each, 40)}, max(peaks) == nameconnections.ASKING_MAX)
names.close()
say([receive(one, 1) for one in asking])
try:
    dial()
except ConnectionRefusedError:
    say(0)  # closed
""") == [({2}, True), ({2}, True), [[], [], [], [], [], []], 0]
