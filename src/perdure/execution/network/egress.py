"""Where a sandbox may go: networks by CIDR, and hosts by name. Nothing given: everywhere."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from perdure.errors import InvalidValue

RULES_MAX = 1000
_NAME = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_HINT = "Write a network (10.0.0.0/8), an address, a host name, or *.example.org for all below it."


@dataclass(frozen=True)
class Egress:
    """``networks`` do not overlap; ``names`` are lower case, ``*.example.org`` is all below that."""

    networks: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def parse(rules: Iterable[str]) -> Egress:
    """The rules as one. Raises InvalidValue that names the one that is none."""
    networks: list[ipaddress.IPv4Network] = []
    names: list[str] = []
    count = 0
    for rule in rules:
        count += 1
        if count > RULES_MAX:
            raise InvalidValue(f"more than {RULES_MAX} egress rules")
        if rule == "none":
            continue
        network = _network(rule)
        if network is not None:
            networks.append(network)
            continue
        name = rule.lower().removesuffix(".")
        if len(name) > 253 or not _NAME.fullmatch(name) or name.rpartition(".")[2].isdigit():
            raise InvalidValue(f"egress: {rule!r} is neither a network nor a host name", hint=_HINT)
        names.append(name)
    merged = ipaddress.collapse_addresses(networks)
    return Egress(tuple(str(network) for network in merged), tuple(dict.fromkeys(names)))


def _network(rule: str) -> ipaddress.IPv4Network | None:
    """Raises InvalidValue for what looks like a network and is none of ours."""
    if not re.fullmatch(r"[0-9.]+(/\S*)?|\S*:\S*(/\S*)?", rule):
        return None
    try:
        network = ipaddress.ip_network(rule, strict=False)
    except ValueError as error:
        raise InvalidValue(f"egress: {rule!r} is no network: {error}", hint=_HINT) from None
    if isinstance(network, ipaddress.IPv6Network):
        raise InvalidValue(f"egress: {rule!r} is IPv6, which sandboxes do not have", hint=_HINT)
    return network
