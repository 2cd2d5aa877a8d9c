"""fcrun snapshot import"""

from __future__ import annotations

import argparse
import json

NAME = "import"
HELP = "Read a snapshot that `fcrun snapshot export` wrote; `fcrun fork` makes sandboxes of it"
GROUP = "Other stores"
DESCRIPTION = (
    f"{HELP}. Prints its digest. It stays until a sandbox that was made from it is removed, or until "
    "`fcrun snapshot rm`."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", default="text", choices=("text", "json"))
    parser.add_argument("file", metavar="FILE", help="-: stdin")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._files import chunks
    from perdure.cli.fcrun._node import node

    with node() as client, chunks(options.file) as tar:
        done = client.store.import_archive(tar)
    print(json.dumps(msgspec.to_builtins(done)) if options.format == "json" else done.digest)
    return 0
