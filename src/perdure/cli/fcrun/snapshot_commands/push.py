"""fcrun snapshot push"""

from __future__ import annotations

import argparse
import json

from perdure.cli.fcrun import _remote

NAME = "push"
HELP = "Bring a snapshot to a store beyond this machine, with the template and image that it needs"
GROUP = "Other stores"
DESCRIPTION = (
    f"{HELP}. What is there already is not sent again; a push that failed goes on where it was. URL is "
    f"{_remote.FORMS}. {_remote.CREDENTIALS}"
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tag", default="", help="what names it there (snapshot-DIGEST)")
    parser.add_argument("--format", default="text", choices=("text", "json"))
    parser.add_argument("-q", "--quiet", action="store_true", help="only the digest")
    parser.add_argument("snapshot", metavar="SNAPSHOT")
    parser.add_argument("url", metavar="URL[:TAG]")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._format import size
    from perdure.cli.fcrun._node import node
    from perdure.errors import InvalidValue

    url, tag = _remote.split(options.url, options.tag)
    if tag.startswith("sha256:"):
        raise InvalidValue("a snapshot is pushed to a tag, not to a digest", hint="Write URL:TAG.")
    with node() as client:
        done = client.store.push(options.snapshot, url, tag=tag)
    if options.format == "json":
        print(json.dumps(msgspec.to_builtins(done)))
        return 0
    print(done.digest)
    if not options.quiet:
        print(f"  {done.url}:{done.tag}, sent {size(done.sent_bytes)}; were there already: {size(done.held_bytes)}")
    return 0
