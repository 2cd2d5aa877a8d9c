"""fcrun snapshot evict"""

from __future__ import annotations

import argparse
import json
import sys

from perdure.cli.fcrun import _remote

NAME = "evict"
HELP = "Delete the memory of snapshots here, once a store beyond this machine is seen to have it"
GROUP = "Other stores"
DESCRIPTION = (
    f"{HELP}. They can be resumed as before: machines fetch what they touch from there. Other snapshots that share "
    f"layers with them do so too. {_remote.CREDENTIALS}"
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="url", default="", metavar="URL", help="that store (where it was pushed to last)"
    )
    parser.add_argument("--format", default="text", choices=("text", "json"), help="'json': one object a line")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the digests")
    parser.add_argument("snapshots", nargs="+", metavar="SNAPSHOT")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._format import digest, size
    from perdure.cli.fcrun._node import FAILED, node
    from perdure.errors import PerdureError

    status = 0
    with node() as client:
        for ref in options.snapshots:
            try:
                done = client.store.evict(ref, url=options.url)
            except PerdureError as error:
                sys.stderr.write(f"fcrun: {error}\n")
                status = FAILED
                continue
            if options.format == "json":
                print(json.dumps(msgspec.to_builtins(done)), flush=True)
                continue
            print(digest(done.digest), flush=True)
            if not options.quiet:
                print(f"  freed {size(done.freed_bytes)}; they are in {done.url}", flush=True)
    return status
