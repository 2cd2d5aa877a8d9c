"""fcrun ps"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from perdure.cli.fcrun import _format
from perdure.cli.fcrun._network import listed

NAME = "ps"
HELP = "List sandboxes: running and suspended ones, with -a all"
GROUP = "Common commands"

COLUMNS = {
    "ID": "SANDBOX ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "CreatedAt": "CREATED",
    "Status": "STATUS",
    "Ports": "PORTS",
    "Stored": "STORED",
    "Names": "NAMES",
}
COMMAND_LENGTH = 20

if TYPE_CHECKING:
    from perdure.model import SandboxInfo


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="also created and exited ones")
    parser.add_argument("-n", "--last", type=int, default=0, metavar="N", help="the newest N, in any state")
    parser.add_argument("-l", "--latest", action="store_true", help="the newest one, in any state")
    parser.add_argument(
        "-f", "--filter", action="append", default=[], metavar="KEY=VALUE", help="id, name, status, image or label"
    )
    _format.add_options(parser, quiet="only the ids")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node

    last = 1 if options.latest else options.last
    wanted = [_filter(text) for text in options.filter]
    everything = options.all or last > 0 or any(key == "status" for key, _ in wanted)
    with node() as client:
        found = [info for info in client.list(everything=everything) if all(_matches(info, *one) for one in wanted)]
    found = found[:last] if last > 0 else found
    if options.quiet:
        for info in found:
            print(info.id)
        return 0
    rows = [_row(info, short=not options.no_trunc) for info in found]
    _format.show(rows, [msgspec.to_builtins(info) for info in found], COLUMNS, options.format)
    return 0


def _filter(text: str) -> tuple[str, str]:
    from perdure.errors import InvalidValue

    key, equals, value = text.partition("=")
    if not equals or key not in ("id", "name", "status", "image", "ancestor", "label"):
        raise InvalidValue(f"--filter: {text!r}", hint="Use id=, name=, status=, image= or label=.")
    return key, value


def _matches(info: SandboxInfo, key: str, value: str) -> bool:
    if key == "id":
        return info.id.startswith(value)
    if key == "name":
        return value in info.name
    if key == "status":
        return info.state == value
    if key == "label":
        name, equals, wanted = value.partition("=")
        return name in info.spec.labels and (not equals or info.spec.labels[name] == wanted)
    return info.spec.image == value or info.spec.image.partition(":")[0] == value


def _row(info: SandboxInfo, *, short: bool) -> dict[str, str]:
    command = " ".join([*(info.spec.entrypoint or []), *info.spec.command])
    if short and len(command) > COMMAND_LENGTH:
        command = command[: COMMAND_LENGTH - 1] + "…"
    return {
        "ID": info.id,
        "Image": info.spec.image,
        "Command": f'"{command}"',
        "CreatedAt": f"{_format.ago(info.created)} ago",
        "Status": _status(info),
        "State": str(info.state),
        "Ports": listed(info.ports),
        "Networks": ",".join(info.addresses),
        "Stored": _format.size(info.stored_bytes) if info.stored_bytes else "",
        "Names": info.name,
        "Labels": ",".join(f"{name}={value}" for name, value in info.spec.labels.items()),
    }


def _status(info: SandboxInfo) -> str:
    if info.state == "running":
        return f"Up {_format.ago(info.started)}{_health(info)}"
    if info.state == "paused":
        return f"Up {_format.ago(info.started)} (Paused)"
    if info.state == "suspended" and info.snapshot is not None:
        return f"Suspended {_format.ago(info.snapshot.created)} ago"
    if info.state == "exited":
        why = str(info.exit_status) if info.exit_status is not None else info.cause
        return f"Exited ({why}) {_format.ago(info.finished)} ago"
    return str(info.state).capitalize()


def _health(info: SandboxInfo) -> str:
    if info.health is None:
        return ""
    return " (health: starting)" if info.health.status == "starting" else f" ({info.health.status})"
