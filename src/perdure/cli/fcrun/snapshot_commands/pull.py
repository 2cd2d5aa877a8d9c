"""fcrun snapshot pull"""

from __future__ import annotations

import argparse
import json

from perdure.cli.fcrun import _remote

NAME = "pull"
HELP = "Bring a snapshot from a store beyond this machine; `fcrun fork` makes sandboxes of it"
GROUP = "Other stores"
DESCRIPTION = (
    f"{HELP}. Prints its digest. It stays until a sandbox that was made from it is removed, or until "
    f"`fcrun snapshot rm`. URL is {_remote.FORMS}. {_remote.CREDENTIALS}"
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tag", default="", help="what names it there, or its digest")
    parser.add_argument(
        "--lazy", action="store_true", help="leave its memory there: machines fetch what they touch, as they touch it"
    )
    parser.add_argument("--format", default="text", choices=("text", "json"))
    parser.add_argument("-q", "--quiet", action="store_true", help="only the digest")
    parser.add_argument("url", metavar="URL[:TAG|@DIGEST]")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._format import size
    from perdure.cli.fcrun._node import node
    from perdure.errors import InvalidValue

    url, reference = _remote.split(options.url, options.tag)
    if not reference:
        raise InvalidValue(f"which snapshot of {url} is not said", hint="Write URL:TAG, URL@DIGEST, or --tag TAG.")
    with node() as client:
        done = client.store.pull(url, reference, lazy=options.lazy)
    if options.format == "json":
        print(json.dumps(msgspec.to_builtins(done)))
        return 0
    print(done.digest)
    if not options.quiet and done.elsewhere_bytes:
        print(f"  {size(done.elsewhere_bytes)} of its memory stay in {done.url} until they are wanted")
    return 0
