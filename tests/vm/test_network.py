"""The network of real machines: out by address and by name, not where they may not go, in by published ports."""

from __future__ import annotations

import http.client
import http.server
import json
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from perdure.client.node import NodeClient
from perdure.errors import Conflict
from perdure.host.paths import Home
from perdure.model import PublishedPort, SandboxInfo

from .conftest import PYTHON, Fcrun

pytestmark = pytest.mark.vm

NAME_SERVER, GOOD, BAD = "192.0.2.53", "192.0.2.80", "192.0.2.81"  # of this machine's loopback (RFC 5737: nobody's)
TABLE = {"good.test": GOOD, "bad.test": BAD}
NGINX = "perdure-nginx"

# What came of getting each HOST[:PORT]/BYTES: the status, or the error (the image has no http.client).
GET = """
import socket, sys
def get(url):
    host, _, path = url.partition("/")
    name, _, port = host.partition(":")
    with socket.create_connection((name, int(port or 80)), 20) as connection:
        connection.sendall(f"GET /{path} HTTP/1.0\\r\\n\\r\\n".encode())
        data = b""
        while more := connection.recv(65536):
            data += more
    return data.split()[1].decode()
if __name__ == "__main__":
    for url in sys.argv[1:]:
        try:
            print(get(url), flush=True)
        except OSError as error:
            print(error, flush=True)
"""

# Answers everybody on port 8000, and says when it is there.
SERVE = """
import socket
server = socket.create_server(("", 8000))
print("up", flush=True)
while True:
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nhello")
"""

# A guest that lies, as root: about who it is, about whose address a name has, about the protocol.
LIE = """
import fcntl, socket, struct
sent = 0
card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
card.bind(("eth0", 0))
mac = card.getsockname()[4]
gateway = bytes.fromhex("02fc00000001")
def ip(source, to, protocol, payload):
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(to))
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack(">H", total ^ 0xFFFF) + head[12:] + payload
udp = struct.pack(">HHHH", 999, 7777, 8 + 4, 0) + b"lie!"
for source in ("10.88.0.1", "172.31.255.1", "127.0.0.1", "192.0.2.80", "172.31.255.2"):
    card.send(gateway + mac + b"\\x08\\x00" + ip(source, "BAD", 17, udp)); sent += 1
card.send(b"\\xff" * 6 + mac + b"\\x86\\xdd" + b"\\x60" + bytes(39)); sent += 1
print("sent", sent, flush=True)
"""


class World:
    """A name server and two web servers on this machine; what they were asked, and datagrams that came."""

    def __init__(self) -> None:
        self.table = dict(TABLE)
        self.asked: list[str] = []
        self.over_tcp = 0
        self.datagrams: list[bytes] = []
        self._sockets: list[socket.socket] = []
        self._servers: list[http.server.HTTPServer] = []

    def open(self) -> None:
        names = self._bound(NAME_SERVER, 53)
        threading.Thread(target=self._serve_names, args=(names,), daemon=True).start()
        listening = socket.create_server((NAME_SERVER, 53))
        self._sockets.append(listening)
        threading.Thread(target=self._serve_connections, args=(listening,), daemon=True).start()
        for address in (GOOD, BAD):
            threading.Thread(target=self._listen, args=(self._bound(address, 7777),), daemon=True).start()
            server = http.server.HTTPServer((address, 80), _Handler)
            self._servers.append(server)
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for one in self._sockets:
            one.close()

    def _bound(self, address: str, port: int) -> socket.socket:
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.bind((address, port))
        self._sockets.append(bound)
        return bound

    def _listen(self, bound: socket.socket) -> None:
        while data := _received(bound):
            self.datagrams.append(data[0])

    def _serve_names(self, bound: socket.socket) -> None:
        while received := _received(bound):
            data, client = received
            bound.sendto(self._answer(data), client)

    def _serve_connections(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return  # it was closed
            with connection:
                size = int.from_bytes(connection.recv(2, socket.MSG_WAITALL), "big")
                answer = self._answer(connection.recv(size, socket.MSG_WAITALL))
                self.over_tcp += 1
                connection.sendall(struct.pack(">H", len(answer)) + answer)

    def _answer(self, data: bytes) -> bytes:
        at, labels = 12, []
        while size := data[at]:
            labels.append(data[at + 1 : at + 1 + size].decode())
            at += 1 + size
        name = ".".join(labels)
        self.asked.append(name)
        address = self.table.get(name)
        head = data[:2] + struct.pack(">HHHHH", 0x8180 if address else 0x8183, 1, 1 if address else 0, 0, 0)
        record = struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(address) if address else b""
        return head + data[12 : at + 5] + record


def _received(bound: socket.socket) -> tuple[bytes, tuple[str, int]] | None:
    try:
        return bound.recvfrom(4096)
    except OSError:
        return None  # it was closed


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = bytes(int(self.path[1:] or 0))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def world(home: Home) -> Iterator[World]:
    addresses = (NAME_SERVER, GOOD, BAD)
    for address in addresses:  # of a session that was killed
        subprocess.run(["ip", "address", "del", f"{address}/32", "dev", "lo"], check=False, capture_output=True)
    # what this machine is called when the emulated host starts, no guest reaches: these are not to be among it
    subprocess.run([sys.executable, "-m", "perdure.cli.fcrun", "host", "start"], check=True, timeout=120)
    for address in addresses:
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    world = World()
    try:
        world.open()
        yield world
    finally:
        world.close()
        for address in addresses:
            subprocess.run(["ip", "address", "del", f"{address}/32", "dev", "lo"], check=True)


def _links(below: Callable[[list[str]], str]) -> set[str]:
    """The ends of machines' pairs that are below the line."""
    return {link["ifname"] for link in json.loads(below(["ip", "-j", "link"])) if link["ifname"].startswith("pv")}


def test_a_server_is_reached_by_its_port_also_while_it_sleeps(
    client: NodeClient,
    fcrun: Fcrun,
    below: Callable[[list[str]], str],
    firecrackers: Callable[[], list[int]],
    kill_below: Callable[[int], None],
    eventually: Callable[[Callable[[], object]], None],
) -> None:
    if NGINX not in {image.name.partition(":")[0] for image in client.images()}:
        client.build_image(NGINX, ["nginx-light"])
    command = ["sh", "-c", "mkdir -p /var/log/nginx; exec nginx -g 'daemon off;'"]
    made = fcrun("run", "-d", "--name", "web", "-p", "127.0.0.1::80", "-p", "53/udp", NGINX, *command)
    assert made.returncode == 0, made.stderr
    said = fcrun("port", "web", "80").stdout.strip()
    address, _, port = said.rpartition(":")
    assert address == "127.0.0.1"

    def page() -> str:
        with urllib.request.urlopen(f"http://{said}/", timeout=60) as answer:
            return str(answer.read().decode())

    def is_up() -> bool:
        try:
            return "Welcome to nginx" in page()
        except (OSError, http.client.HTTPException):
            return False

    eventually(is_up)
    assert f"127.0.0.1:{port}->80/tcp" in fcrun("ps").stdout
    taken = fcrun("run", "-d", "--name", "late", "-p", f"127.0.0.1:{port}:80", NGINX, *command)
    assert taken.returncode == 125 and "already allocated" in taken.stderr
    assert client.get("late").state == "created"

    kept = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    kept.request("GET", "/")
    assert kept.getresponse().read().startswith(b"<!DOCTYPE")
    client.suspend("web")
    assert firecrackers() == []
    eventually(lambda: _links(below) == set())  # the kernel takes namespaces apart in its own time
    client.shutdown()  # the next node listens again
    fcrun("ps")
    assert "Welcome to nginx" in page()
    assert client.get("web").state == "running"
    kept.close()

    (fork,) = client.fork("web", [])
    (forked,) = [one for one in fork.ports if one.guest_port == 80]
    assert forked.host_port not in (0, int(port))
    with urllib.request.urlopen(f"http://127.0.0.1:{forked.host_port}/", timeout=60) as answer:
        assert answer.status == 200
    assert fork.addresses["bridge"] != client.get("web").addresses["bridge"]
    assert len(_links(below)) == 2

    kill_below(int(client.get(fork.id).machine["keeper_pid"]))
    eventually(lambda: client.get(fork.id).state == "exited")
    eventually(lambda: len(_links(below)) == 1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", forked.host_port))
    client.remove("web", force=True)
    eventually(lambda: _links(below) == set())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)))


def test_out_into_the_world_and_not_to_the_host(world: World, fcrun: Fcrun) -> None:
    asked = [f"{GOOD}/", "good.test/", "nosuch.test/"]
    closed = ["10.0.2.2/", "10.88.0.1/", "169.254.169.254/"]
    done = fcrun("run", "--rm", "--dns", NAME_SERVER, "perdure-test", *PYTHON, GET, *asked, *closed)
    *answers, host, gateway, cloud = done.stdout.splitlines()
    assert answers == ["200", "200", "[Errno -2] Name or service not known"], done.stderr
    assert "No route to host" in host and "No route to host" in gateway and "No route to host" in cloud

    world.asked.clear()
    done = fcrun("run", "--rm", "--network", "none", "perdure-test", *PYTHON, GET, *asked[:2])
    assert done.stdout.splitlines() == ["[Errno 101] Network is unreachable", "[Errno -2] Name or service not known"]
    assert world.asked == []


def test_egress_rules_hold_against_a_guest_that_lies(world: World, fcrun: Fcrun) -> None:
    options = ["--dns", NAME_SERVER, "--egress", "good.test"]
    asked = [f"{GOOD}/", "bad.test/", "good.test/", f"{GOOD}/", f"{BAD}/"]
    world.asked.clear()
    world.datagrams.clear()
    made = fcrun("run", "-d", "--name", "liar", *options, "perdure-test", "sleep", "1000")
    assert made.returncode == 0, made.stderr
    done = fcrun("exec", "liar", *PYTHON, GET, *asked)
    no_way, no_name = "[Errno 113] No route to host", "[Errno -2] Name or service not known"
    assert done.stdout.splitlines() == [no_way, no_name, "200", "200", no_way], done.stderr
    assert set(world.asked) == {"good.test"}

    # a name server of its own would tell it what it likes: it is not reached
    other = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)\n"
    other += f"s.sendto(b'x', ('{NAME_SERVER}', 53))\ntry: print(s.recv(9))\nexcept OSError as error: print(error)"
    assert "b'" not in fcrun("exec", "liar", *PYTHON, other).stdout
    lied = fcrun("exec", "liar", *PYTHON, LIE.replace("BAD", BAD))
    assert lied.stdout == "sent 6\n", lied.stderr
    # what it sent before this has been handled by now: the same card, in order
    assert fcrun("exec", "liar", *PYTHON, GET, f"{GOOD}/").stdout == "200\n"
    assert world.datagrams == []
    lied = fcrun("exec", "liar", *PYTHON, LIE.replace("BAD", GOOD))
    assert fcrun("exec", "liar", *PYTHON, GET, f"{GOOD}/").stdout == "200\n"
    assert world.datagrams == [b"lie!"]  # of the one that told who it is

    done = fcrun("run", "--rm", "--egress", f"{BAD}/32", "--bandwidth", "4m", "perdure-test", *PYTHON, SLOW)
    assert done.returncode == 0, done.stderr
    took, refused = done.stdout.splitlines()
    assert float(took) > 1.0 and "No route to host" in refused  # 1.5 MB at 0.5 MB/s, of which a burst is free


SLOW = (
    GET.partition("if __name__")[0]
    + f"""
import time
began = time.monotonic()
get("{BAD}/1500000")
print(time.monotonic() - began)
try:
    get("{GOOD}/")
except OSError as error:
    print(error)
"""
)


def test_what_a_name_stands_for_is_reached_after_a_resume_by_who_remembers_it(
    world: World, client: NodeClient, fcrun: Fcrun, eventually: Callable[[Callable[[], object]], None]
) -> None:
    options = ["--dns", NAME_SERVER, "--egress", "*.test"]
    made = fcrun("run", "-d", "--name", "pinned", *options, "perdure-test", "sleep", "1000")
    assert made.returncode == 0, made.stderr

    def got(*urls: str, env: tuple[str, ...] = ()) -> list[str]:
        return fcrun("exec", *env, "pinned", *PYTHON, GET, *urls).stdout.splitlines()

    assert got("good.test/", env=("-e", "RES_OPTIONS=use-vc")) == ["200"]  # asked for over TCP
    assert world.over_tcp and set(world.asked) <= {"good.test", "bad.test", "nosuch.test"}
    world.asked.clear()
    client.suspend("pinned")
    client.resume("pinned")
    eventually(lambda: "good.test" in world.asked)
    assert got(f"{GOOD}/") == ["200"]

    client.suspend("pinned")
    world.table["good.test"] = BAD
    try:
        for go_on in (lambda: client.fork("pinned", []), lambda: client.resume("pinned")):
            world.asked.clear()
            go_on()
            eventually(lambda: "good.test" in world.asked)
        assert got(f"{BAD}/", f"{GOOD}/") == ["200", "[Errno 113] No route to host"]  # what it is now, and only that
    finally:
        world.table = dict(TABLE)


def test_members_of_a_network_reach_each_other_by_name_and_others_do_not(
    client: NodeClient, fcrun: Fcrun, start: Callable[..., SandboxInfo]
) -> None:
    client.networks.create("office", internal=True)
    server = start(*PYTHON, SERVE, name="files", networks=["office"], aliases=["data"])
    asker = start("sleep", "1000", name="asker", networks=["office"])
    alone = start("sleep", "1000", name="alone")
    address = server.addresses["office"]
    assert client.networks.get("office").members == {"files": address, "asker": asker.addresses["office"]}
    urls = [f"{name}:8000/" for name in ("files", "data", address)]
    assert next(iter(client.logs("files", follow=True))).data == b"up\n"
    done = fcrun("exec", "asker", *PYTHON, GET, *urls, f"{GOOD}/")
    assert done.stdout.splitlines() == ["200", "200", "200", "[Errno 101] Network is unreachable"], done.stderr
    neighbour = [f"{address}:8000/", "files:8000/", f"{asker.addresses['office']}:8000/"]
    said = fcrun("exec", "alone", *PYTHON, GET, *neighbour).stdout.splitlines()
    assert "200" not in said and len(said) == 3

    client.rename("files", "papers")
    assert fcrun("exec", "asker", *PYTHON, GET, "papers:8000/").stdout == "200\n"
    client.suspend("asker")
    client.resume("asker")
    assert fcrun("exec", "asker", *PYTHON, GET, "papers:8000/").stdout == "200\n"
    client.networks.connect("office", "alone", ["helper"])
    assert fcrun("exec", "alone", *PYTHON, GET, "papers:8000/").stdout == "200\n"
    client.networks.disconnect("office", "alone")
    assert "200" not in fcrun("exec", "alone", *PYTHON, GET, f"{address}:8000/").stdout
    with pytest.raises(Conflict, match="papers"):
        client.networks.remove("office")
    for info in (server, asker, alone):
        client.remove(info.id, force=True)
    client.networks.remove("office")


def test_a_port_needs_a_network(client: NodeClient, start: Callable[..., SandboxInfo]) -> None:
    from perdure.errors import InvalidValue

    with pytest.raises(InvalidValue, match="without a network"):
        start("true", networks=["none"], ports=[PublishedPort(guest_port=80)])
    assert client.list() == []
