"""fcrun stats"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from perdure.cli.fcrun import _format

if TYPE_CHECKING:
    from perdure.model import SandboxUsage

NAME = "stats"
HELP = "Show what sandboxes use, again and again: processors, memory, network, disks"
GROUP = "Sandboxes"
DESCRIPTION = (
    f"{HELP}. CPU % is that of the machine, of one processor; memory is what the workload and its kernel cannot give "
    "back; STORED is what a sandbox costs at rest, which is all that a suspended one uses."
)

COLUMNS = {
    "ID": "SANDBOX ID",
    "Name": "NAME",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
    "PIDs": "PIDS",
    "Stored": "STORED",
}
EVERY_S = 1.0
CLEAR = "\x1b[H\x1b[J"  # the whole screen, from its first line on (ECMA-48)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="also those that nothing runs of")
    parser.add_argument("--no-stream", action="store_true", help="only once")
    parser.add_argument("--no-trunc", action="store_true", help="do not shorten")
    parser.add_argument(
        "--format", default="table", metavar="FORMAT", help="'table', 'json', or a template such as '{{.MemPerc}}'"
    )
    parser.add_argument("sandboxes", nargs="*", metavar="SANDBOX")


def run(options: argparse.Namespace) -> int:
    import sys
    import time

    from perdure.cli.fcrun._node import node

    clears = sys.stdout.isatty() and options.format.startswith("table") and not options.no_stream
    with node() as client:
        before: dict[str, SandboxUsage] = {}
        while True:
            found = client.stats(options.sandboxes, everything=options.all)
            if before or not any(one.cpu_s for one in found):  # a share of processors needs two looks
                rows = [_row(one, before.get(one.id)) for one in found]
                if clears:
                    sys.stdout.write(CLEAR)
                _format.show(rows, rows, COLUMNS, options.format)
                sys.stdout.flush()
                if options.no_stream:
                    return 0
            before = {one.id: one for one in found}
            time.sleep(EVERY_S)


def share(now: SandboxUsage, before: SandboxUsage | None) -> float:
    """Of one processor, in percent, between two looks; 0 where its machine is another one by now."""
    if before is None or now.time <= before.time:
        return 0.0
    return max(0.0, 100 * (now.cpu_s - before.cpu_s) / (now.time - before.time))


def _row(now: SandboxUsage, before: SandboxUsage | None) -> dict[str, str]:
    used, limit = now.memory_bytes, now.memory_limit_bytes
    return {
        "ID": now.id,
        "Container": now.id,
        "Name": now.name,
        "State": str(now.state),
        "CPUPerc": f"{share(now, before):.2f}%",
        "MemUsage": f"{_format.binary_size(used)} / {_format.binary_size(limit)}",
        "MemPerc": f"{100 * used / limit if limit else 0.0:.2f}%",
        "HostMem": _format.binary_size(now.host_bytes),
        "NetIO": f"{_format.size(now.received_bytes)} / {_format.size(now.sent_bytes)}",
        "BlockIO": f"{_format.size(now.read_bytes)} / {_format.size(now.written_bytes)}",
        "PIDs": str(now.threads),
        "Stored": _format.size(now.stored_bytes),
    }
