"""perdure tag"""

from __future__ import annotations

import argparse

NAME = "tag"
HELP = "Set a run's tags and metadata, also after its end"
GROUP = "Runs"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")
    tags = "a tag; without '=' it is taken away; with none of these the tags are only printed"
    parser.add_argument("tags", metavar="NAME=VALUE", nargs="*", help=tags)
    parser.add_argument("--metadata", metavar="JSON", help="replaces what is there: JSON, @FILE, or - for stdin")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.perdure import _json
    from perdure.client.server import ServerClient

    tags = {text.partition("=")[0]: text.partition("=")[2] if "=" in text else None for text in options.tags}
    new = {} if options.metadata is None else {"metadata": _json.argument(options.metadata, "--metadata")}
    server = ServerClient()
    info = server.tag(options.run_id, tags, **new) if tags or new else server.get(options.run_id)
    for name, value in sorted(info.tags.items()):
        print(f"{name}={value}")
    return 0
