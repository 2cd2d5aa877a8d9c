"""Options for the network of a sandbox, parsed as Docker parses them."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Iterable
from typing import Any

from perdure.errors import InvalidValue
from perdure.model import PublishedPort

_RATES = {"k": 10**3, "m": 10**6, "g": 10**9}
_HINT = "Write HOST:GUEST, ADDRESS:HOST:GUEST or GUEST, with /udp for UDP."


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """What ``run`` and ``create`` share."""
    parser.add_argument(
        "-p",
        "--publish",
        action="append",
        default=[],
        metavar="[[ADDRESS:]HOST:]GUEST[/PROTOCOL]",
        help="listen on the host for a port; a connection wakes a suspended sandbox",
    )
    parser.add_argument("-P", "--publish-all", action="store_true", help="publish all ports that the image exposes")
    parser.add_argument(
        "--network",
        "--net",
        action="append",
        default=[],
        metavar="NETWORK",
        help="a network to be in, or 'none' (default: bridge, alone with the world)",
    )
    parser.add_argument(
        "--network-alias", "--net-alias", action="append", default=[], metavar="NAME", help="another name in it"
    )
    parser.add_argument(
        "--egress",
        action="append",
        default=None,
        metavar="RULE",
        help="where it may go, and nowhere else: a CIDR, an address, a host name, *.example.org, or 'none'",
    )
    parser.add_argument("--dns", action="append", default=[], metavar="ADDRESS", help="ask this name server")
    parser.add_argument(
        "--dns-search", action="append", default=[], metavar="DOMAIN", help="names without a domain may be of this one"
    )
    parser.add_argument(
        "--dns-option", "--dns-opt", action="append", default=[], metavar="OPTION", help="of its resolver: ndots:2"
    )
    parser.add_argument("--bandwidth", default="", metavar="RATE", help="of its network, each way, in bits: 10m")
    parser.add_argument("--packet-rate", default="", metavar="N", help="packets a second, each way")


def network_of(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a spec. Raises InvalidValue that names the option."""
    egress = options.egress
    return {
        "networks": options.network,
        "aliases": options.network_alias,
        "ports": [port for text in options.publish for port in published(text)],
        "publish_all": options.publish_all,
        "egress": None if egress is None else [rule.strip() for text in egress for rule in text.split(",") if rule],
        "dns": options.dns,
        "dns_search": options.dns_search,
        "dns_options": options.dns_option,
        "bytes_per_s": _rate("--bandwidth", options.bandwidth) // 8,
        "packets_per_s": _rate("--packet-rate", options.packet_rate),
    }


def published(text: str) -> list[PublishedPort]:
    """``[[ADDRESS:]HOST:]GUEST[/PROTOCOL]``, where HOST and GUEST may be ranges. Raises InvalidValue."""
    ports, _, protocol = text.partition("/")
    protocol = protocol or "tcp"
    address, rest = "", ports
    if ports.startswith("["):
        address, closed, rest = ports[1:].partition("]:")
        if not closed:
            raise InvalidValue(f"--publish: {text!r} is no port", hint=_HINT)
    elif ports.count(":") == 2:
        address, _, rest = ports.partition(":")
    host, _, guest = rest.rpartition(":")
    if protocol not in ("tcp", "udp"):
        raise InvalidValue(f"--publish: {text!r}: ports are of tcp or udp", hint=_HINT)
    if address:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise InvalidValue(f"--publish: {address!r} is no address of this host", hint=_HINT) from None
    inside = _range(text, guest)
    outside = _range(text, host) if host else [0] * len(inside)
    if len(outside) != len(inside):
        raise InvalidValue(f"--publish: {text!r}: the ranges differ in length", hint=_HINT)
    return [
        PublishedPort(guest_port=to, host_port=at, host_ip=address, protocol=protocol)
        for at, to in zip(outside, inside, strict=True)
    ]


def _range(text: str, part: str) -> list[int]:
    first, dash, last = part.partition("-")
    try:
        low, high = int(first), int(last) if dash else int(first)
    except ValueError:
        raise InvalidValue(f"--publish: {text!r} is no port", hint=_HINT) from None
    if not 1 <= low <= high <= 65535:
        raise InvalidValue(f"--publish: {text!r}: ports are 1 to 65535", hint=_HINT)
    return list(range(low, high + 1))


def _rate(option: str, text: str) -> int:
    if not text:
        return 0
    lowered = text.lower().removesuffix("bit").removesuffix("bps")
    unit = _RATES.get(lowered[-1:], 1)
    try:
        rate = int(float(lowered.rstrip("kmg")) * unit)
    except (ValueError, OverflowError):
        rate = 0
    if rate < 1:
        raise InvalidValue(f"{option}: {text!r} is no rate", hint="Write 500k, 10m or 1g.")
    return rate


def places(port: PublishedPort) -> list[str]:
    """Where on the host it can be reached, as Docker writes it."""
    if port.host_ip:
        address = f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip
        return [f"{address}:{port.host_port}"]
    return [f"0.0.0.0:{port.host_port}", f"[::]:{port.host_port}"]


def listed(ports: Iterable[PublishedPort]) -> str:
    """All of a sandbox in one cell of ``ps``."""
    return ", ".join(f"{place}->{port.guest_port}/{port.protocol}" for port in ports for place in places(port))
