"""``fcrun network`` and the network options of ``create`` against a real node; nothing here needs a machine."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from perdure.client.node import NodeClient
from perdure.host.paths import Home
from perdure.model import PublishedPort, SandboxSpec
from perdure.testing.commands import Fcrun
from perdure.testing.tinynodes import box_asleep, new_home, root_tar, tiny_node


@dataclass
class Node:
    """A running fcrund with the image ``tiny``, and a suspended sandbox ``box`` that publishes a port."""

    home: Home
    client: NodeClient
    fcrun: Fcrun


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    home = new_home(tmp_path)
    ports = [PublishedPort(guest_port=80, host_ip="127.0.0.1")]
    box_asleep(home, spec=SandboxSpec(image="tiny", ports=ports))
    with tiny_node(home) as client:
        yield Node(home, client, Fcrun(home))


def test_networks_are_made_shown_and_removed(node: Node) -> None:
    assert node.fcrun.said("network", "ls", "--format", "{{.Name}} {{.Kind}} {{.Members}}") == "bridge isolated 1\n"
    made = node.fcrun.said("network", "create", "--internal", "--label", "a=b", "office").strip()
    assert len(made) == 12
    assert node.fcrun.said("network", "ls", "-q", "--filter", "name=off") == f"{made}\n"
    assert node.fcrun.said("network", "ls", "-q", "--filter", "label=a=c") == ""
    (shown,) = json.loads(node.fcrun.said("network", "inspect", made[:5]))
    assert (shown["name"], shown["internal"], shown["labels"]) == ("office", True, {"a": "b"})
    assert shown["subnet"].startswith("10.89.")
    assert node.fcrun.said("network", "inspect", "-f", "{{.subnet}}", "office") == f"{shown['subnet']}\n"

    node.client.shutdown()  # the next one knows it, too
    created = node.fcrun.said("create", "--name", "member", "--network", "office", "tiny", "true").strip()
    address = node.client.get(created).addresses["office"]
    assert node.client.networks.get("office").members == {"member": address}
    status, out, err = node.fcrun("network", "rm", "office", "nosuch")
    assert (status, out) == (1, "") and "member" in err and "no such network: nosuch" in err
    assert node.fcrun.said("network", "prune", "-f") == ""
    node.fcrun.said("rm", "member")
    node.fcrun.said("network", "create", "other")
    assert node.fcrun.said("network", "rm", "office") == "office\n"
    assert node.fcrun.said("network", "prune", "-f") == "other\n"
    assert [network.name for network in node.client.networks.list()] == ["bridge"]


REFUSED = [
    (["network", "create", "bridge"], "already exists"),
    (["network", "create", "../x"], "no name of a network"),
    (["network", "create", "--subnet", "10.88.1.0/24", "x"], "overlaps with network bridge"),
    (["network", "rm", "bridge"], "pre-defined"),
    (["network", "inspect", "nosuch"], "no such network: nosuch"),
    (["network", "nosuch"], "is not a fcrun network command"),
    (["create", "--network", "nosuch", "tiny", "true"], "no such network: nosuch"),
    (["create", "--network", "host", "tiny", "true"], "of its own"),
    (["create", "--network", "none", "--network", "bridge", "tiny", "true"], "excludes"),
    (["create", "--network", "none", "-p", "80", "tiny", "true"], "without a network"),
    (["create", "--egress", "example.org/x", "tiny", "true"], "neither a network nor a host name"),
    (["create", "--egress", "::/0", "tiny", "true"], "IPv6"),
    (["create", "--dns", "example.org", "tiny", "true"], "no IPv4 address"),
    (["create", "--bandwidth", "fast", "tiny", "true"], "--bandwidth"),
    (["create", "--init-timeout", "soon", "tiny", "true"], "--init-timeout"),
    (["create", "--packet-rate", "0", "tiny", "true"], "--packet-rate"),
    (["create", "--ip6", "2001:db8::1", "tiny", "true"], "IPv4 only"),
    (["network", "create", "--ipv6", "office"], "IPv4 only"),
    (["network", "create", "--subnet", "fd00::/64", "office"], "fd00::/64"),
]
NO_PORTS = ["", "x", "0", "65536", "1:2:3:4", "80/sctp", "1-2:5-9", "9-1", "host:1:2", "[::1:80", "1.2.3.4:80:"]


def test_what_cannot_be_is_said_and_made_of_nothing(node: Node) -> None:
    for argv, words in [*REFUSED, *((["create", "-p", text, "tiny", "true"], "--publish") for text in NO_PORTS)]:
        status, out, err = node.fcrun(*argv)
        assert status in (1, 125) and out == "" and words in err, (argv, status, out, err)
    assert [info.name for info in node.client.list()] == ["box"]
    assert [network.name for network in node.client.networks.list()] == ["bridge"]


def test_ports_are_parsed_as_docker_does(node: Node) -> None:
    options = [
        "-p",
        "80",
        "-p",
        "8080:80",
        "-p",
        "127.0.0.1:53:53/udp",
        "-p",
        "[::1]::443",
        "-p",
        "9000-9001:7000-7001",
    ]
    made = node.fcrun.said("create", *options, "tiny", "true").strip()
    assert node.client.get(made).spec.ports == [
        PublishedPort(guest_port=80),
        PublishedPort(guest_port=80, host_port=8080),
        PublishedPort(guest_port=53, host_port=53, host_ip="127.0.0.1", protocol="udp"),
        PublishedPort(guest_port=443, host_ip="::1"),
        PublishedPort(guest_port=7000, host_port=9000),
        PublishedPort(guest_port=7001, host_port=9001),
    ]
    assert node.fcrun.said("port", made) == ""  # it listens once it runs
    node.client.import_image("exposing", root_tar(), changes=["EXPOSE 80 53/udp 7000-7001"])
    made = node.fcrun.said("create", "-P", "-p", "8080:80", "exposing", "true").strip()
    assert node.client.get(made).spec.ports == [
        PublishedPort(guest_port=80, host_port=8080),
        PublishedPort(guest_port=53, protocol="udp"),
        PublishedPort(guest_port=7000),
        PublishedPort(guest_port=7001),
    ]
    assert node.client.get(node.fcrun.said("create", "exposing", "true").strip()).spec.ports == []


def test_a_node_listens_for_those_that_sleep(node: Node) -> None:
    said = node.fcrun.said("port", "box", "80").strip()
    address, _, port = said.rpartition(":")
    assert address == "127.0.0.1"
    assert node.fcrun.said("port", "box") == f"80/tcp -> {said}\n"
    assert f"{said}->80/tcp" in node.fcrun.said("ps")
    status, out, err = node.fcrun("port", "box", "81")
    assert (status, out) == (1, "") or status == 125
    assert "no public port '81/tcp' published for box" in err

    node.client.shutdown()  # with the same number, so that who knows it still gets through
    assert node.fcrun.said("port", "box", "80").strip() == said
    node.client.shutdown()
    with socket.create_server(("127.0.0.1", int(port))):
        again = node.fcrun.said("port", "box", "80").strip()  # it is another's now
        assert again != said
    node.client.remove("box")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(again.rpartition(":")[2])))
