"""fcrun network ls"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun import _format

NAME = "ls"
HELP = "List networks"
GROUP = "Networks"
COLUMNS = {"ID": "NETWORK ID", "Name": "NAME", "Subnet": "SUBNET", "Kind": "KIND", "Members": "SANDBOXES"}


def configure(parser: argparse.ArgumentParser) -> None:
    _format.add_filter(parser, "id, name or label")
    _format.add_options(parser, quiet="only the ids")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node
    from perdure.errors import InvalidValue

    wanted = [text.partition("=") for text in options.filter]
    for key, equals, _ in wanted:
        if not equals or key not in ("id", "name", "label"):
            raise InvalidValue(f"--filter: {key!r}", hint="Use id=, name= or label=.")
    with node() as client:
        found = client.networks.list()
    for key, _, value in wanted:
        if key == "label":
            name, equals, text = value.partition("=")
            found = [one for one in found if name in one.labels and (not equals or one.labels[name] == text)]
        elif key == "id":
            found = [one for one in found if one.id.startswith(value)]
        else:
            found = [one for one in found if value in one.name]
    if options.quiet:
        for network in found:
            print(network.id)
        return 0
    rows = [
        {
            "ID": network.id,
            "Name": network.name,
            "Subnet": network.subnet,
            "Kind": "internal" if network.internal else "isolated" if network.isolated else "shared",
            "Members": str(len(network.members)),
            "Driver": "bridge",
            "Scope": "local",
            "Internal": str(network.internal).lower(),
            "Labels": ",".join(f"{name}={value}" for name, value in network.labels.items()),
        }
        for network in found
    ]
    _format.show(rows, [msgspec.to_builtins(network) for network in found], COLUMNS, options.format)
    return 0
