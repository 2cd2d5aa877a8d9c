"""The networks of a node: ``HOME/networks/NAME.json``, each a bridge below the line that sandboxes' networks join.

``bridge`` is the one that a sandbox is in when nothing else was said: its members reach the world and not each other.
Members of a network that was made by name reach each other, by their names too.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import threading
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from perdure.errors import Conflict, InvalidValue, NotFound
from perdure.host.vault import write_durably
from perdure.model import Network, new_id

DEFAULT, NONE, HOST = "bridge", "none", "host"
DEFAULT_POOL = tuple(ipaddress.IPv4Network(f"10.{second}.0.0/16") for second in (88, *range(90, 106)))
POOL = tuple(ipaddress.IPv4Network("10.89.0.0/16").subnets(new_prefix=24))
VERSION = 1
PER_SANDBOX_MAX = 8
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_log = logging.getLogger(__name__)
_RESERVED = (DEFAULT, NONE, HOST, "default")


class _Record(Network, frozen=True, kw_only=True):
    version: int = VERSION


class Networks:
    """All networks of a node, by name. ``routes``: where the host's own routes are told (proc_net(5))."""

    def __init__(self, folder: Path, routes: Path = Path("/proc/net/route")) -> None:
        self._folder, self._routes = folder, routes
        self._networks: dict[str, Network] = {}
        self._changing = threading.Lock()  # they are made in threads

    def load(self) -> None:
        """Read what is kept. What does not read is left alone and named in the log: its members do not start."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for path in sorted(self._folder.glob("*.json")):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=_Record)
                ipaddress.IPv4Network(record.subnet)
                if record.version > VERSION:
                    raise ValueError(f"it has version {record.version}, of a newer Perdure")
            except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
                _log.error("network %s is left alone: %s does not read: %s", path.stem, path, error)
                continue
            self._networks[record.name] = record
        if DEFAULT not in self._networks:
            subnet = str(self._free(DEFAULT_POOL))
            self._keep(_Record(id=new_id(), name=DEFAULT, created=time.time(), subnet=subnet, isolated=True))

    def all(self) -> list[Network]:
        return sorted(self._networks.values(), key=lambda network: network.created)

    def find(self, ref: str) -> Network:
        """By name, id, or a unique beginning of an id. Raises NotFound, Conflict."""
        name = DEFAULT if ref == "default" else ref
        if name in self._networks:
            return self._networks[name]
        found = [network for network in self._networks.values() if ref and network.id.startswith(ref)]
        if len(found) > 1:
            raise Conflict(f"{ref!r} is ambiguous: it could be {', '.join(sorted(n.id for n in found))}")
        if not found:
            raise NotFound(f"no such network: {ref}", hint="`fcrun network ls` lists all, `network create` makes one.")
        return found[0]

    def create(
        self, name: str, *, subnet: str = "", internal: bool = False, labels: dict[str, str] | None = None
    ) -> Network:
        """Raises InvalidValue, Conflict (the name, the subnet). Any thread may call it."""
        with self._changing:
            return self._create(name, subnet, internal, labels or {})

    def _create(self, name: str, subnet: str, internal: bool, labels: dict[str, str]) -> Network:
        if not _NAME.fullmatch(name):
            raise InvalidValue(
                f"{name!r} is no name of a network", hint="Use letters, digits, '_', '.' and '-', a letter first."
            )
        if name in self._networks or name in _RESERVED or self._path(name).exists():
            raise Conflict(f"network with name {name} already exists", hint="Choose another name.")
        record = _Record(
            id=new_id(),
            name=name,
            created=time.time(),
            subnet=str(self._checked(subnet) if subnet else self._free()),
            internal=internal,
            labels=labels,
        )
        self._keep(record)
        return record

    def remove(self, network: Network, users: Collection[str]) -> None:
        """Raises Conflict: it is the default one, or sandboxes are in it."""
        if network.name == DEFAULT:
            raise Conflict("bridge is a pre-defined network and cannot be removed")
        if users:
            raise Conflict(
                f"network {network.name} has sandboxes in it: {', '.join(sorted(users))}", hint="Remove these first."
            )
        del self._networks[network.name]
        self._path(network.name).unlink(missing_ok=True)

    def wanted(self, names: Iterable[str]) -> list[Network]:
        """The networks that a sandbox asks for. Raises InvalidValue, NotFound."""
        asked = list(dict.fromkeys(DEFAULT if name == "default" else name for name in names)) or [DEFAULT]
        if HOST in asked or any(name.startswith("container:") for name in asked):
            raise InvalidValue(
                "a microVM has a network stack of its own: it cannot share the host's or another sandbox's",
                hint="Publish ports with -p, or put both in a network: fcrun network create NAME.",
            )
        if NONE in asked:
            if len(asked) > 1:
                raise InvalidValue("the network 'none' excludes all others")
            return []
        if len(asked) > PER_SANDBOX_MAX:
            raise InvalidValue(f"a sandbox can be in {PER_SANDBOX_MAX} networks at most")
        return [self.find(name) for name in asked]

    def _keep(self, record: _Record) -> None:
        write_durably(self._path(record.name), msgspec.json.encode(record))
        self._networks[record.name] = record

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _checked(self, text: str) -> ipaddress.IPv4Network:
        try:
            subnet = ipaddress.IPv4Network(text)
        except ValueError as error:
            raise InvalidValue(f"{text!r} is no IPv4 network: {error}", hint="Write 10.89.7.0/24.") from None
        if not 8 <= subnet.prefixlen <= 29:
            raise InvalidValue(f"{text}: a network needs a prefix of 8 to 29 bits")
        for other in self._networks.values():
            if subnet.overlaps(ipaddress.IPv4Network(other.subnet)):
                raise Conflict(f"{text} overlaps with network {other.name} ({other.subnet})")
        return subnet

    def _free(self, pool: Iterable[ipaddress.IPv4Network] = POOL) -> ipaddress.IPv4Network:
        taken = [ipaddress.IPv4Network(network.subnet) for network in self._networks.values()] + self._of_host()
        for subnet in pool:
            if not any(subnet.overlaps(other) for other in taken):
                return subnet
        raise Conflict("no subnet is free for another network", hint="Give one with --subnet, or remove a network.")

    def _of_host(self) -> list[ipaddress.IPv4Network]:
        """Where the host has routes of its own, but for the default one."""
        found = []
        try:
            lines = self._routes.read_text().splitlines()[1:]
        except OSError:
            return []
        for line in lines:
            fields = line.split()
            address, mask = (int(fields[place], 16).to_bytes(4, "little") for place in (1, 7))
            if mask != bytes(4):
                prefix = int.from_bytes(mask, "big").bit_count()
                found.append(ipaddress.IPv4Network((address, prefix), strict=False))
        return found


def gateway(network: Network) -> str:
    """The host's own address in it."""
    return str(next(ipaddress.IPv4Network(network.subnet).hosts()))


def free_address(network: Network, taken: Collection[str]) -> str:
    """An address that no member has. Raises Conflict."""
    first = gateway(network)
    for host in ipaddress.IPv4Network(network.subnet).hosts():
        address = str(host)
        if address != first and address not in taken:
            return address
    raise Conflict(f"network {network.name} has no free address left", hint="Make one with a larger --subnet.")


def bridge(network: Network) -> str:
    """The name of its bridge below the line: at most 15 bytes."""
    return f"pd{network.id}"
