"""fcrun ps"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun import _format

NAME = "ps"
HELP = "List sandboxes: running and suspended ones, with -a all"
GROUP = "Common commands"

COLUMNS = {
    "ID": "SANDBOX ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "RunningFor": "CREATED",
    "Status": "STATUS",
    "Ports": "PORTS",
    "Stored": "STORED",
    "Names": "NAMES",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="also created and exited ones")
    parser.add_argument("-n", "--last", type=int, default=-1, metavar="N", help="the newest N, in any state")
    parser.add_argument("-l", "--latest", action="store_true", help="the newest one, in any state")
    parser.add_argument("-s", "--size", action="store_true", help="what each stored, and with its image's size")
    _format.add_filter(
        parser,
        "id=, name=, label=, status=, ancestor=, exited=, network=, publish=, before=, since= …; of one key any "
        "(of label all), of several keys all",
    )
    _format.add_options(parser, quiet="only the ids")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun import _filters, _views
    from perdure.cli.fcrun._node import node

    last = 1 if options.latest else options.last
    wanted = _filters.parse(options.filter)
    everything = options.all or last > 0 or any(key in wanted for key in _filters.ANY_STATE)
    sizes: dict[str, int] | None = None
    with node() as client:
        found = _filters.chosen(client.list(everything=everything), wanted)
        if options.size or "Size" in options.format:
            sizes = {image.digest: image.size_bytes for image in client.images()}
    found = found[:last] if last > 0 else found
    if options.quiet and options.format == "table":
        for info in found:
            print(info.id)
        return 0
    rows = [_views.listed(info, short=not options.no_trunc, image_bytes=sizes) for info in found]
    values = [
        {name: value for name, value in row.items() if not callable(value)} | msgspec.to_builtins(info)
        for row, info in zip(rows, found, strict=True)
    ]
    columns = COLUMNS | ({"Size": "SIZE"} if options.size else {})
    _format.show(rows, values, columns, options.format)
    return 0
