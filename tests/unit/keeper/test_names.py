"""The guest's questions for names: a real resolver's datagrams, in a network of the test's own."""

from __future__ import annotations

import ast

from hypothesis import given
from hypothesis import strategies as st

from perdure.keeper import dns
from perdure.testing import namespaces

# The keeper's end has 172.31.255.1, a name server has 192.0.2.53; both are addresses of this network's loopback.
WORLD = """
import select, socket, struct
from perdure.keeper.loop import Loop
from perdure.keeper.names import Names
from perdure.linux.links import Links

def say(*values):
    print(values[0] if len(values) == 1 else values)

links = Links()
links.up("lo")
for address in ("172.31.255.1", "192.0.2.53", "192.0.2.54"):
    links.add_address("lo", address, 32)
loop, permitted, asked = Loop(), [], []
names = Names(loop, Names.outside(), permitted.extend, socket.socket)
names.open()
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("192.0.2.53", 53))
server.setblocking(False)
guest = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
guest.settimeout(5)

def query(name, kind=1, number=7):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">HHHHHH", number, 0x100, 1, 0, 0, 0) + labels + b"\\0" + struct.pack(">HH", kind, 1)

def answer(data, *addresses, code=0):
    record = struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4)
    head = data[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(addresses), 0, 0)
    return head + data[12:data.index(b"\\0", 12) + 5] + b"".join(record + socket.inet_aton(one) for one in addresses)

def serve(*addresses, change=lambda data: data):
    data, client = server.recvfrom(4096)
    asked.append(data[12:])
    server.sendto(change(answer(data, *addresses)), client)

def ask(data, *, served=None):
    guest.sendto(data, ("172.31.255.1", 53))
    loop.turn(5)
    if served is not None:
        serve(*served)
        loop.turn(5)
    said = guest.recv(4096)
    found = [socket.inet_ntoa(said[at - 4:at]) for at in range(len(said), len(data), -16)]
    return said[:2] == data[:2], said[3] & 15, found[::-1]
"""


def _said(program: str) -> list[object]:
    namespaces.require_rights()
    return [ast.literal_eval(line) for line in namespaces.run(WORLD + program).splitlines()]


def test_names_of_the_world_are_asked_for_outside() -> None:
    assert _said("""
names.know(["192.0.2.53"], None)
say(ask(query("example.org"), served=["192.0.2.80", "192.0.2.81"]))
say(ask(query("example.org", kind=28)))  # there is no IPv6 in here: nobody is asked
say(len(asked), permitted)
""") == [(True, 0, ["192.0.2.80", "192.0.2.81"]), (True, 0, []), (1, [])]


def test_names_of_other_sandboxes_come_from_the_table() -> None:
    assert _said("""
names.list({"Web": "10.89.0.2"})
say(ask(query("web")), ask(query("WEB")), ask(query("web", kind=28)), ask(query("db")))
names.list({"db": "10.89.0.3"})
say(ask(query("web")), ask(query("db")))
""") == [
        ((True, 0, ["10.89.0.2"]), (True, 0, ["10.89.0.2"]), (True, 0, []), (True, 3, [])),
        ((True, 3, []), (True, 0, ["10.89.0.3"])),
    ]


def test_only_permitted_names_are_asked_for_and_what_they_stand_for_is_opened_first() -> None:
    assert _said("""
names.know(["192.0.2.53"], ["good.test", "*.wild.test"])
say(ask(query("bad.test")), ask(query("wild.test")), ask(query("good.test.evil.test")), len(asked), permitted)
say(ask(query("Good.Test"), served=["192.0.2.80"]), permitted)
say(ask(query("a.b.wild.test"), served=["192.0.2.81"]), permitted)
""") == [
        ((True, 3, []), (True, 3, []), (True, 3, []), 0, []),
        ((True, 0, ["192.0.2.80"]), ["192.0.2.80"]),
        ((True, 0, ["192.0.2.81"]), ["192.0.2.80", "192.0.2.81"]),
    ]


def test_answers_that_nobody_asked_for_are_dropped() -> None:
    assert _said("""
names.know(["192.0.2.53"], ["good.test"])
guest.sendto(query("good.test"), ("172.31.255.1", 53))
loop.turn(5)
data, client = server.recvfrom(4096)
other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
other.bind(("192.0.2.53", 5353))
other.sendto(answer(data, "192.0.2.66"), client)  # from another port
wrong = bytes([data[0] ^ 1]) + data[1:]
server.sendto(answer(wrong, "192.0.2.66"), client)  # another number
server.sendto(answer(data[:2] + query("evil.test")[2:], "192.0.2.66"), client)  # another question
server.sendto(data, client)  # a question
for _ in range(4):
    loop.turn(1)
say(permitted)
server.sendto(answer(data, "192.0.2.80"), client)
loop.turn(5)
say(permitted, guest.recv(4096)[-4:] == socket.inet_aton("192.0.2.80"))
""") == [[], (["192.0.2.80"], True)]


def test_who_asks_again_is_heard_by_the_next_server() -> None:
    assert _said("""
names.know(["203.0.113.1", "192.0.2.54", "192.0.2.53"], None)  # no way leads to the first, nobody is at the second
guest.sendto(query("example.org"), ("172.31.255.1", 53))
loop.turn(5)
say(ask(query("example.org"), served=["192.0.2.80"]))
""") == [(True, 0, ["192.0.2.80"])]


def test_nothing_but_a_question_leaves_the_host() -> None:
    assert _said("""
names.know(["192.0.2.53"], None)
asked_with = query("example.org")[:-5] + b"\\0" + b"\\0\\1\\0\\1" + b"whatever else a guest says"
guest.sendto(asked_with, ("172.31.255.1", 53))
loop.turn(5)
data, _ = server.recvfrom(4096)
say(data[12:] == query("example.org")[12:], data[2:4])
update = query("example.org")
guest.sendto(update[:2] + b"\\x28\\0" + update[4:], ("172.31.255.1", 53))  # opcode 5
loop.turn(5)
try:
    server.recvfrom(4096)
except BlockingIOError:
    say(0)  # nobody heard of it
extended = query("example.org")[:10] + b"\\0\\1" + query("example.org")[12:] + b"\\0\\0\\x29\\x10\\0" + bytes(6)
guest.sendto(extended, ("172.31.255.1", 53))
loop.turn(5)
data, _ = server.recvfrom(4096)
say(data[12:] == query("example.org")[12:] + b"\\0\\0\\x29\\x10\\0" + bytes(6), data[10:12])
""") == [(True, b"\x01\x00"), 0, (True, b"\0\1")]


def test_a_permitted_name_opens_no_way_to_the_host_nor_to_a_clouds_keys() -> None:
    assert _said("""
names.know(["192.0.2.53"], ["good.test", "*.wild.test"])
ask(query("good.test"), served=["169.254.169.254", "127.0.0.1", "0.0.0.0", "224.0.0.1", "10.1.2.3", "192.0.2.80"])
say(permitted)  # a private network where the name was permitted by itself
permitted.clear()
ask(query("x.wild.test"), served=["10.1.2.3", "172.20.0.1", "192.168.1.1", "100.64.0.1", "192.0.2.81"])
say(permitted)
""") == [["10.1.2.3", "192.0.2.80"], ["192.0.2.81"]]


def test_names_are_looked_up_again_without_a_guest() -> None:
    assert _said("""
names.know(["192.0.2.53"], ["good.test", "*.wild.test"])
ask(query("good.test"), served=["192.0.2.80"])
ask(query("a.wild.test"), served=["192.0.2.81"])
ask(query("good.test"), served=["192.0.2.80"])
say(names.opened(3600), names.opened(-1))
permitted.clear(); asked.clear()
names.know(["203.0.113.1", "192.0.2.54", "192.0.2.53"], ["good.test", "*.wild.test"])  # nobody is at the first two
done = []
wanted = ["good.test", "bad.test", "a.wild.test", "x" * 64 + ".wild.test", "", ".wild.test", "\u00e4.wild.test"]
names.look_up(wanted, lambda: done.append(len(permitted)))
for _ in range(2):
    assert loop.run_until(lambda: select.select([server], [], [], 0)[0], 9)
    serve("192.0.2.82")
assert loop.run_until(lambda: len(permitted) == 2, 9)
say(permitted, len(asked), done)  # what they stand for now
guest.setblocking(False)
try:
    guest.recv(1)
except BlockingIOError:
    say(0)
names.know(["192.0.2.54"], ["good.test"])
names.look_up(["good.test"], lambda: done.append(0))
names.know(["192.0.2.54"], ["good.test"])  # nobody waits for that any more
names.look_up(["good.test"], lambda: done.append("in vain"))
assert loop.run_until(lambda: len(done) > 1, 9)
names.know([], ["good.test"])
names.look_up(["good.test"], lambda: done.append("nobody to ask"))
names.know(["192.0.2.54"], None)
names.look_up(["good.test"], lambda: done.append("all is open"))
say(*done[1:])
""") == [
        (["a.wild.test", "good.test"], []),
        (["192.0.2.82", "192.0.2.82"], 2, [2]),
        0,
        ("in vain", "nobody to ask", "all is open"),
    ]


def test_answers_that_come_after_a_change_are_dropped() -> None:
    assert _said("""
names.know(["192.0.2.53"], None)
guest.sendto(query("example.org"), ("172.31.255.1", 53))
loop.turn(5)
data, client = server.recvfrom(4096)
names.know([], None)  # it left its last network
server.sendto(answer(data, "192.0.2.66"), client)
loop.turn(5)
say(ask(query("example.org")))
""") == [(True, 3, [])]


def test_a_guest_that_floods_is_answered_and_holds_little() -> None:
    assert _said("""
names.know(["192.0.2.53"], None)
for number in range(600):
    guest.sendto(query("example.org", number=number), ("172.31.255.1", 53))
    loop.turn(5)
codes = []
guest.setblocking(False)
try:
    while True:
        codes.append(guest.recv(4096)[3] & 15)
except BlockingIOError:
    pass
say(len(codes), set(codes), len(names._pending))
""") == [(88, {2}, 512)]


@given(st.binary(max_size=600))
def test_no_bytes_are_too_strange(data: bytes) -> None:
    for read in (dns.Question, lambda data: dns.addresses(data, 12)):
        try:
            read(data)
        except dns.NOISE:
            pass
