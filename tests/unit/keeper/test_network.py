"""A machine's network in a namespace of the test's own: what it is made of, and that it goes with its keeper."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from perdure.testing import namespaces

pytestmark = [
    pytest.mark.skipif(shutil.which("ip") is None, reason="ip (iproute2) is not installed"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="this machine has no /dev/net/tun"),
]

# The parent is the host; a child is a keeper, which says when it has joined and ends when it is told.
KEEPER = """
import json, os, subprocess, sys
from perdure.keeper.loop import Loop
from perdure.keeper.network import Network
from perdure.errors import PerdureError

def said(*argv):
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

def links():
    return sorted(link["ifname"] for link in json.loads(said("ip", "-j", "link")))

class Keeper:
    def __init__(self, sandbox, params, look=lambda: None):
        reading, writing = os.pipe()
        hearing, telling = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading); os.close(telling)
            try:
                if params is not None:
                    network = Network(Loop())
                    network.open()
                    network.join(sandbox, params)
                answer = {"ok": look()}
            except PerdureError as error:
                answer = {"error": str(error)}
            os.write(writing, json.dumps(answer).encode())
            os.close(writing)
            os.read(hearing, 1)
            os._exit(0)
        os.close(writing); os.close(hearing)
        self.telling = telling
        self.answer = json.loads(os.read(reading, 65536))
    def end(self):
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)

def uplink(number, **more):
    return {"bridge": "pdtest", "address": f"10.88.0.{number}", "prefix": 16, "gateway": "10.88.0.1", **more}
"""


def test_all_that_a_keeper_made_goes_with_it() -> None:
    namespaces.require_rights()
    said = namespaces.run(
        KEEPER
        + """
keeper = Keeper("a" * 12, {"networks": [uplink(5, isolated=True)]}, links)
print(keeper.answer["ok"])
print(links())
again = Keeper("b" * 12, {"networks": [uplink(6, isolated=True)]})
print(len(links()), said("bridge", "-d", "link").count("isolated on"))
keeper.end(); again.end()
for _ in range(200):
    if links() == ["lo", "pdtest"]: break
    subprocess.run(["sleep", "0.05"])  # the kernel takes namespaces apart in its own time
print(links())
"""
    )
    assert said.splitlines() == [
        "['lo', 'tap0', 'up0']",
        "['lo', 'pdtest', 'pvaaaaaaaaaaaa0']",
        "4 2",
        "['lo', 'pdtest']",
    ]


def test_networks_change_in_its_life() -> None:
    namespaces.require_rights()
    said = namespaces.run(
        KEEPER
        + """
def change():
    network = Network(Loop())
    network.open()
    office = {"bridge": "pdoffice", "address": "10.89.0.2", "prefix": 24, "gateway": "10.89.0.1"}
    for params in ([uplink(5)], [uplink(5), office], [office], [], [uplink(5), office]):
        network.join("a" * 12, {"networks": params, "egress": ["192.0.2.0/24", "10.0.0.0/8"]})
        default = said("ip", "route", "show", "default").split()[2:3]
        print([name for name in links() if name[:2] == "up"], default, flush=True)
    return said("nft", "list", "chain", "ip", "perdure", "egress").count("accept")
print(Keeper("a" * 12, None, change).answer)
"""
    )
    assert said.splitlines() == [
        "['up0'] ['10.88.0.1']",
        "['up0', 'up1'] ['10.88.0.1']",
        "['up1'] ['10.89.0.1']",
        "[] []",
        "['up0', 'up1'] ['10.88.0.1']",
        "{'ok': 2}",
    ]


def test_the_hosts_rules_come_back_and_its_other_interfaces_do_not_forward() -> None:
    namespaces.require_rights()
    said = namespaces.run(
        KEEPER
        + """
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run("ip link add out type bridge; ip addr add 192.0.2.1/24 dev out; ip link set out up; "
               "ip route add default via 192.0.2.254; ip link add other type bridge; ip link set other up", shell=True)
one = Keeper("a" * 12, {"networks": [uplink(5)]})
subprocess.run(["nft", "flush", "ruleset"], check=True)
two = Keeper("b" * 12, {"networks": [uplink(6)]}, lambda: said("ip", "-j", "link", "show", "up0"))
print("masquerade" in said("nft", "list", "ruleset"))
forwarding = lambda name: open(f"/proc/sys/net/ipv4/conf/{name}/forwarding").read().strip()
print(forwarding("pdtest"), forwarding("out"), forwarding("other"))
print(json.loads(two.answer["ok"])[0]["address"])
one.end(); two.end()
"""
    )
    assert said.splitlines() == ["True", "1 1 0", "02:fc:0a:58:00:06"]


def test_a_name_that_is_looked_up_again_stays_open_for_an_hour_more() -> None:
    namespaces.require_rights()
    said = namespaces.run(
        KEEPER
        + """
def look():
    listed = json.loads(said("nft", "-j", "list", "set", "ip", "perdure", "names"))["nftables"][-1]["set"]
    return [int(one["elem"]["expires"]) for one in listed.get("elem", [])]

def permit():
    import perdure.keeper.network as module
    network = Network(Loop())
    network.open()
    network.join("a" * 12, {"networks": [uplink(5)], "egress": [], "egress_names": ["x.test"]})
    module.NAME_TIMEOUT_S = 100
    network._permit(["192.0.2.80", "192.0.2.80"])
    before = look()
    module.NAME_TIMEOUT_S = 3600
    network._permit(["192.0.2.80"])
    after = look()
    said("nft", "flush", "set", "ip", "perdure", "names")  # its hour is over
    network._permit(["192.0.2.80", "192.0.2.81"])
    return before, after, len(look())
print(Keeper("a" * 12, None, permit).answer["ok"])
"""
    )
    (before,), (after,), count = ast.literal_eval(said)
    assert before <= 100 and after > 3000 and count == 2


def test_what_was_looked_up_before_it_slept_is_open_again_as_it_is_now() -> None:
    namespaces.require_rights()
    said = namespaces.run(
        KEEPER
        + """
import socket, struct, threading
from perdure.linux.links import Links
links_ = Links()
links_.up("lo")
links_.add_address("lo", "192.0.2.53", 32)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("192.0.2.53", 53))  # in the host's network, where the keeper has left

def serve():
    while True:
        data, client = server.recvfrom(4096)
        end = data.index(b"\\0", 12) + 5
        head = data[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
        record = struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton("192.0.2.80")
        server.sendto(head + data[12:end] + record, client)
threading.Thread(target=serve, daemon=True).start()

def resume():
    loop = Loop()
    network = Network(loop)
    network.open()
    network.join("a" * 12, {"networks": [uplink(5)], "servers": ["192.0.2.53"], "egress": [],
                            "egress_names": ["good.test"], "looked_up": ["bad.test", "good.test"]})
    egress = lambda: said("nft", "list", "chain", "ip", "perdure", "egress").count("reject")
    before = egress()  # what is closed yet is not refused: it may be open in a moment
    assert loop.run_until(lambda: egress() > before, 9)
    listed = json.loads(said("nft", "-j", "list", "set", "ip", "perdure", "names"))["nftables"][-1]["set"]
    return before, egress(), network.opened, [one["elem"]["val"] for one in listed["elem"]]
print(Keeper("a" * 12, None, resume).answer["ok"])
"""
    )
    assert ast.literal_eval(said) == [1, 2, ["good.test"], ["192.0.2.80"]]


def test_the_way_out_is_the_first_network_that_was_wished_for() -> None:
    namespaces.require_rights()
    said = namespaces.run(
        KEEPER
        + """
def change():
    network = Network(Loop())
    network.open()
    a, b, c = [{"bridge": f"pd{name}", "address": f"10.{at}.0.2", "prefix": 24, "gateway": f"10.{at}.0.1"}
               for name, at in (("a", 90), ("b", 91), ("c", 92))]
    found = []
    for wanted in ([a, b], [b], [b, c]):
        network.join("a" * 12, {"networks": wanted})
        found.append(said("ip", "route", "show", "default").split()[2])
    return found
print(Keeper("a" * 12, None, change).answer["ok"])
"""
    )
    assert said == "['10.90.0.1', '10.91.0.1', '10.91.0.1']\n"


def test_no_network_is_a_tap_that_leads_nowhere() -> None:
    namespaces.require_rights()
    said = namespaces.run(
        KEEPER
        + """
keeper = Keeper("a" * 12, {"networks": []}, lambda: (links(), said("ip", "route", "get", "172.31.255.2").split()[2]))
print(keeper.answer["ok"], links())
keeper.end()
"""
    )
    assert said.splitlines() == ["[['lo', 'tap0'], 'tap0'] ['lo']"]


def test_a_machine_is_not_taken_for_the_one_before_it_that_had_its_address_and_used_its_port() -> None:
    namespaces.require_rights()
    said = namespaces.run(
        KEEPER
        + """
import socket
subprocess.run(["nft", "add", "table", "ip", "perdure"], check=True)  # so the host hears its guests here
listening = socket.create_server(("", 7777))
hearing = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
hearing.bind(("", 7777))
for heard in (listening, hearing): heard.settimeout(20)

def connect():
    calling = socket.create_connection(("10.88.0.1", 7777), 20, source_address=("10.88.0.5", 40000))
    telling = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    telling.bind(("10.88.0.5", 40000))
    telling.sendto(b"", ("10.88.0.1", 7777))
    return calling.getsockname()

ports = []
for name in "ab":  # the second one has the first one's address, after it was killed
    keeper = Keeper(name * 12, {"networks": [uplink(5, isolated=True)]}, connect)
    print(keeper.answer, hearing.recvfrom(1)[1])
    taken, (_, port) = listening.accept()
    ports.append(port)
    keeper.end()
print(len({40000, *ports}))
"""
    )
    assert said.splitlines() == [*["{'ok': ['10.88.0.5', 40000]} ('10.88.0.5', 40000)"] * 2, "3"]


@pytest.mark.parametrize(
    "params",
    [
        '{"networks": {"a": 1}}',
        '{"networks": [{}]}',
        '{"networks": [uplink(5, bridge="../x")]}',
        '{"networks": [uplink(5, bridge="p" * 16)]}',
        '{"networks": [uplink(5, address="10.88.0.256")]}',
        '{"networks": [uplink(5, prefix=31)]}',
        '{"networks": [uplink(5)], "egress": ["10.0.0.0"]}',
        '{"networks": [uplink(5)], "egress": ["10.0.0.0/33"]}',
        '{"networks": [uplink(5)], "names": {"a": "b"}}',
        '{"networks": [uplink(5)], "servers": [7]}',
        '{"networks": [uplink(5)], "looked_up": "all"}',
    ],
)
def test_what_a_node_may_not_ask_for(params: str) -> None:
    namespaces.require_rights()
    said = namespaces.run(KEEPER + f"keeper = Keeper('a' * 12, {params})\nprint(keeper.answer)\nkeeper.end()")
    assert said.startswith("{'error'")
