"""Networks of a node: names, subnets, addresses, and what is kept of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perdure.errors import Conflict, InvalidValue, NotFound
from perdure.execution.network.networks import Networks, bridge, free_address, gateway

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000590A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


@pytest.fixture
def networks(tmp_path: Path) -> Networks:
    return _opened(tmp_path)


def _opened(tmp_path: Path) -> Networks:
    (tmp_path / "routes").write_text(ROUTES)
    networks = Networks(tmp_path / "networks", tmp_path / "routes")
    networks.load()
    return networks


def test_there_is_one_whose_members_are_alone_with_the_world(networks: Networks) -> None:
    (only,) = networks.all()
    assert (only.name, only.subnet, only.isolated, only.internal) == ("bridge", "10.88.0.0/16", True, False)
    assert networks.find("default") is only
    assert networks.wanted([]) == [only] == networks.wanted(["bridge", "default"])


def test_a_subnet_is_found_that_the_host_does_not_use(networks: Networks) -> None:
    assert networks.create("a").subnet == "10.89.1.0/24"  # 10.89.0.0/24 is eth0's
    assert networks.create("b").subnet == "10.89.2.0/24"


def test_networks_that_are_made_at_once_have_subnets_of_their_own(networks: Networks) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(networks.create, [f"n{number}" for number in range(16)]))
        assert len({network.subnet for network in made}) == 16

        def again(_: int) -> bool:
            try:
                networks.create("once")
                return True
            except Conflict:
                return False

        assert sum(pool.map(again, range(8))) == 1


def test_the_default_one_goes_out_of_the_hosts_way(tmp_path: Path) -> None:
    (tmp_path / "routes").write_text(ROUTES + "cni0\t0000580A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n")
    networks = Networks(tmp_path / "networks", tmp_path / "routes")
    networks.load()
    assert networks.find("bridge").subnet == "10.90.0.0/16"


def test_all_is_kept(networks: Networks, tmp_path: Path) -> None:
    made = networks.create("web", subnet="10.7.0.0/24", internal=True, labels={"a": "b"})
    again = _opened(tmp_path).find(made.id[:6])
    assert again == made
    networks.remove(made, ())
    with pytest.raises(NotFound):
        _opened(tmp_path).find("web")


@pytest.mark.parametrize("name", ["", "-x", "a/b", "../x", "bridge", "none", "host", "default", "x" * 64, "a b", "é"])
def test_names_that_cannot_be(networks: Networks, name: str) -> None:
    with pytest.raises((InvalidValue, Conflict)):
        networks.create(name)


@pytest.mark.parametrize("subnet", ["10.88.3.0/24", "10.0.0.0/7", "10.9.0.0/30", "10.9.0.1/24", "fd00::/64", "x"])
def test_subnets_that_cannot_be(networks: Networks, subnet: str) -> None:
    with pytest.raises((InvalidValue, Conflict)):
        networks.create("a", subnet=subnet)
    assert len(networks.all()) == 1


def test_one_with_members_stays(networks: Networks) -> None:
    web = networks.create("web")
    with pytest.raises(Conflict, match="box"):
        networks.remove(web, ["box"])
    with pytest.raises(Conflict, match="pre-defined"):
        networks.remove(networks.find("bridge"), ())
    assert networks.find("web") == web


@pytest.mark.parametrize("wanted", [["host"], ["container:x"], ["none", "bridge"], ["nosuch"]])
def test_what_a_sandbox_cannot_be_in(networks: Networks, wanted: list[str]) -> None:
    with pytest.raises((InvalidValue, NotFound)):
        networks.wanted(wanted)


def test_addresses_run_out(networks: Networks) -> None:
    small = networks.create("small", subnet="10.7.0.0/29")
    taken: set[str] = set()
    for _ in range(5):  # six hosts, one of them the gateway
        taken.add(free_address(small, taken))
    assert gateway(small) == "10.7.0.1" and taken == {f"10.7.0.{number}" for number in range(2, 7)}
    with pytest.raises(Conflict, match="no free address"):
        free_address(small, taken)


def test_the_name_of_a_bridge_fits_an_interface(networks: Networks) -> None:
    assert len(bridge(networks.find("bridge"))) <= 15


@pytest.mark.parametrize("text", ["", "{", '{"id":1}', '{"id":"a","name":"x","created":1,"subnet":"y"}'])
def test_a_record_that_does_not_read_is_left_alone(
    networks: Networks, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    path = tmp_path / "networks" / "x.json"
    path.write_text(text)
    again = _opened(tmp_path)
    assert [network.name for network in again.all()] == ["bridge"]
    assert str(path) in caplog.text
    with pytest.raises(Conflict):
        again.create("x")
    assert path.read_text() == text
