"""fcrun images"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun import _format

NAME = "images"
HELP = "List images"
GROUP = "Common commands"

COLUMNS = {"Repository": "REPOSITORY", "Tag": "TAG", "ID": "IMAGE ID", "CreatedSince": "CREATED", "Size": "SIZE"}


def configure(parser: argparse.ArgumentParser) -> None:
    _format.add_options(parser, quiet="only the ids")
    parser.add_argument("--digests", action="store_true", help="also what a registry calls them")
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="only images of this name")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node

    with node() as client:
        found = [image for image in client.images() if options.name in ("", image.name, image.name.rpartition(":")[0])]
    rows = []
    for image in found:
        repository, _, tag = image.name.rpartition(":")
        if "@" in image.name:
            repository, tag = image.name.partition("@")[0], ""
        digest = image.digest if options.no_trunc else image.digest.removeprefix("sha256:")[:12]
        rows.append(
            {
                "Repository": repository or "<none>",
                "Tag": tag or "<none>",
                "Digest": image.pulled or "<none>",
                "ID": digest,
                "CreatedSince": f"{_format.ago(image.created)} ago",
                "Size": _format.size(image.size_bytes),
            }
        )
    if options.quiet:
        for row in rows:
            print(row["ID"])
        return 0
    columns = COLUMNS
    if options.digests:
        columns = {"Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", **COLUMNS}
    _format.show(rows, [msgspec.to_builtins(image) for image in found], columns, options.format)
    return 0
