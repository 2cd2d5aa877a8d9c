"""What a machine's keeper is told of the network that it is to make (docs/design/0001-contracts.md, 3)."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.errors import InvalidValue
from perdure.execution.network import egress
from perdure.execution.network.networks import bridge, gateway
from perdure.host.emulated import NAME_SERVER
from perdure.model import Network, SandboxSpec

RESOLV_CONF = "/etc/resolv.conf"
SERVERS_MAX = 3  # as resolv.conf(5)


def params(
    spec: SandboxSpec,
    networks: Sequence[Network],
    addresses: Mapping[str, str],
    names: Mapping[str, str],
    *,
    emulated: bool,
) -> dict[str, Any]:
    """The parameter ``network`` of a restore. ``addresses``: its own, by network; ``names``: of others, with theirs.

    Raises InvalidValue (the egress rules).
    """
    wanted: dict[str, Any] = {
        "networks": [
            {
                "bridge": bridge(network),
                "address": addresses[network.name],
                "prefix": ipaddress.IPv4Network(network.subnet).prefixlen,
                "gateway": "" if network.internal else gateway(network),
                "isolated": network.isolated,
            }
            for network in networks
        ],
        "names": dict(names),
    }
    if networks and not all(network.internal for network in networks):
        wanted["servers"] = list(spec.dns) or ([NAME_SERVER] if emulated else name_servers())
    if spec.egress is not None:
        rules = egress.parse(spec.egress)
        wanted |= {"egress": list(rules.networks), "egress_names": list(rules.names)}
    if spec.bytes_per_s:
        wanted["bytes_per_s"] = spec.bytes_per_s
    if spec.packets_per_s:
        wanted["packets_per_s"] = spec.packets_per_s
    return wanted


def check_name_servers(servers: Sequence[str]) -> None:
    """Raises InvalidValue that names the one that is no IPv4 address."""
    for server in servers:
        try:
            ipaddress.IPv4Address(server)
        except ValueError:
            raise InvalidValue(f"dns: {server!r} is no IPv4 address") from None


def check_address(address: str) -> None:
    """Raises InvalidValue where it is no address of a host."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise InvalidValue(f"{address!r} is no address of this host", hint="Write 127.0.0.1 or ::1.") from None


def name_servers(path: str = RESOLV_CONF) -> list[str]:
    """The IPv4 name servers of this machine (resolv.conf(5))."""
    found = []
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for words in map(str.split, lines):
        if len(words) > 1 and words[0] == "nameserver":
            try:
                found.append(str(ipaddress.IPv4Address(words[1])))
            except ValueError:
                continue
    return found[:SERVERS_MAX]
