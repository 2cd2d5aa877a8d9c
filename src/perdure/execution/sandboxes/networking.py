"""A sandbox's place in the networks: its addresses, what its keeper is told, its published ports."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.errors import Conflict, InvalidValue, PerdureError, Unavailable
from perdure.execution.network import attachment, dialing, egress
from perdure.execution.network.networks import NONE, Networks, free_address
from perdure.execution.network.publishing import Published, Streams
from perdure.execution.sandboxes.record import Record
from perdure.formats.manifest import Origin
from perdure.model import Network, PublishedPort, SandboxSpec, SandboxState, WakeReason

if TYPE_CHECKING:
    from perdure.execution.sandboxes.life import Life

PORTS_MAX = 1024
OPENED_MAX = 64  # as keepers tell of: a snapshot may come from anybody
_EXPOSED = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?/(tcp|udp)")

_log = logging.getLogger(__name__)


def check(spec: SandboxSpec, networks: Networks) -> None:
    """Raises InvalidValue, NotFound (a network)."""
    wanted = networks.wanted(spec.networks)
    egress.parse(spec.egress or [])
    attachment.check_name_servers(spec.dns)
    if len(spec.ports) > PORTS_MAX:
        raise InvalidValue(f"a sandbox can publish {PORTS_MAX} ports at most")
    for port in spec.ports:
        if port.protocol not in ("tcp", "udp"):
            raise InvalidValue(f"ports are of tcp or udp, not of {port.protocol!r}")
        if port.host_ip:
            attachment.check_address(port.host_ip)
        if not 1 <= port.guest_port <= 65535 or not 0 <= port.host_port <= 65535:
            raise InvalidValue(f"no such port: {port.host_port}:{port.guest_port}", hint="Ports are 1 to 65535.")
    if (spec.ports or spec.aliases) and not wanted:
        raise InvalidValue("a sandbox without a network has no ports to publish, and no names")
    if spec.bytes_per_s < 0 or spec.packets_per_s < 0:
        raise InvalidValue("a limit of the network is more than nothing")


def exposed(spec: SandboxSpec, ports: Iterable[str]) -> SandboxSpec:
    """With the ports that its image exposes (``PORT[-PORT]/PROTOCOL``) among those to publish, where that is wished."""
    if not spec.publish_all:
        return spec
    found = list(spec.ports)
    known = {(port.guest_port, port.protocol) for port in found}
    for text in ports:
        match = _EXPOSED.fullmatch(text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if match is None or not 1 <= first <= last <= 65535:
            raise InvalidValue(f"the image exposes {text!r}, which is no port", hint="Publish those it has with -p.")
        for number in range(first, last + 1):
            if (number, match[3]) not in known:
                found.append(PublishedPort(guest_port=number, protocol=match[3]))
    return msgspec.structs.replace(spec, ports=found, publish_all=False)


def place(spec: SandboxSpec, networks: Networks, others: Iterable[Record]) -> dict[str, str]:
    """Addresses of its own for a new sandbox, by network. Raises NotFound, InvalidValue, Conflict (none is free)."""
    known = list(others)
    return {
        network.name: free_address(network, {record.addresses.get(network.name, "") for record in known})
        for network in networks.wanted(spec.networks)
    }


def params(life: Life, origin: Origin | None = None) -> dict[str, Any]:
    """The parameter ``network`` of its next restore, from a snapshot of this origin. Raises NotFound: a network is
    gone."""
    record, networks = life.record, life.rooms.networks
    members = [network for network in networks.wanted(record.spec.networks) if network.name in record.addresses]
    names = names_for(record, members, life.rooms.others())
    emulated = life.rooms.ground.emulated
    wanted = attachment.params(record.spec, members, record.addresses, names, emulated=emulated)
    if origin is not None and origin.opened:
        wanted["looked_up"] = origin.opened[:OPENED_MAX]
    return wanted


def names_for(record: Record, members: Iterable[Network], others: Iterable[Record]) -> dict[str, str]:
    """The names of the others in its networks, with their addresses there. Where two want a name, the older has it."""
    found: dict[str, str] = {}
    shared = [network.name for network in members if not network.isolated]
    for other in sorted(others, key=lambda one: one.created) if shared else ():
        for network in shared:
            if network in other.addresses and other.id != record.id:
                for name in (other.name, other.id, *other.spec.aliases):
                    found.setdefault(name.lower(), other.addresses[network])
    return found


async def tell_names(life: Life) -> None:
    """The machine of a running sandbox hears who is in its networks now."""
    machine = life.machine
    if machine is None or machine.over:
        return
    try:
        members = life.rooms.networks.wanted(life.record.spec.networks)
        await machine.request("names", names=names_for(life.record, members, life.rooms.others()))
    except (PerdureError, OSError) as error:
        _log.info("names for %s: %s", life.id, error)


async def change(life: Life, networks: Iterable[str], aliases: Iterable[str] = ()) -> None:
    """Put it into these networks, in its life or before it; it keeps its addresses in those that it is in already.

    Raises InvalidValue, NotFound, Conflict (no address is free), MachineFailed. ``life.moving`` is held.
    """
    before = life.record
    spec = msgspec.structs.replace(
        before.spec,
        networks=list(networks) or [NONE],
        aliases=list(dict.fromkeys([*before.spec.aliases, *aliases])),
    )
    others = [record for record in life.rooms.others() if record.id != before.id]
    addresses = place(spec, life.rooms.networks, others)
    kept = {name: before.addresses.get(name, address) for name, address in addresses.items()}
    life.save(spec=spec, addresses=kept)
    if life.machine is not None and not life.machine.over:
        try:
            await life.machine.request("join", network=params(life))
        except BaseException:
            life.save(spec=before.spec, addresses=before.addresses)
            with contextlib.suppress(PerdureError, OSError):
                await life.machine.request("join", network=params(life))  # what was changed before it failed
            raise


async def publish(life: Life) -> None:
    """Listen for its ports, unless the node does already. Raises Conflict: one is in use."""
    if life.published is not None or not life.record.spec.ports:
        return

    async def dial(protocol: str, port: int) -> Streams:
        await life.awake(WakeReason.CONNECT)
        if life.machine is None:
            raise Unavailable(f"sandbox {life.name} ended in this moment")
        async with life.rooms.ground.dials:
            return await dialing.dial(life.machine.address, life.id, protocol, port)

    published = Published(life.name, dial, life.activity.busy)
    wanted = [_again(port, life.record.ports) for port in life.record.spec.ports]
    try:
        ports = await published.open(wanted)
    except Conflict:
        if wanted == life.record.spec.ports:
            raise
        ports = await published.open(life.record.spec.ports)  # a number that was found before is another's now
    try:
        life.save(ports=ports)
    except BaseException:
        await published.close()
        raise
    life.published = published


def _again(port: PublishedPort, before: Iterable[PublishedPort]) -> PublishedPort:
    """A port whose number was left to us keeps the one that it had."""
    if port.host_port:
        return port
    for known in before:
        if (known.guest_port, known.host_ip, known.protocol) == (port.guest_port, port.host_ip, port.protocol):
            return known
    return port


async def withdraw(life: Life) -> None:
    """Listen no more."""
    published, life.published = life.published, None
    if published is not None:
        await published.close()


async def withdraw_if_over(life: Life) -> None:
    """Of what did not come back to life: one that sleeps still listens on."""
    if life.state is SandboxState.EXITED:
        await withdraw(life)


def users(network: Network, records: Iterable[Record]) -> dict[str, str]:
    """The names of the sandboxes in a network, with their addresses."""
    return {record.name: record.addresses[network.name] for record in records if network.name in record.addresses}
