"""A machine's network in a namespace of the test's own: what it is made of, and that it goes with its keeper."""

from __future__ import annotations

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
    ],
)
def test_what_a_node_may_not_ask_for(params: str) -> None:
    namespaces.require_rights()
    said = namespaces.run(KEEPER + f"keeper = Keeper('a' * 12, {params})\nprint(keeper.answer)\nkeeper.end()")
    assert said.startswith("{'error'")
