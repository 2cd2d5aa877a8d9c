"""fcrun history"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from perdure.cli.fcrun import _format

if TYPE_CHECKING:
    from perdure.model import ImageStep

NAME = "history"
HELP = "Show how an image was made"
GROUP = "Images"

COLUMNS = {
    "ID": "IMAGE",
    "CreatedSince": "CREATED",
    "CreatedBy": "CREATED BY",
    "Size": "SIZE",
    "Comment": "COMMENT",
}
LENGTH = 45  # of CREATED BY, as docker shortens it


def configure(parser: argparse.ArgumentParser) -> None:
    _format.add_options(parser, quiet="only the ids")
    parser.add_argument("image", metavar="IMAGE")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node

    with node() as client:
        digest = client.library.inspect(options.image)["Id"]
        steps = client.library.history(options.image)
    rows = [_row(step, digest if number == 0 else "", options) for number, step in enumerate(steps)]
    if options.quiet:
        for row in rows:
            print(row["ID"])
        return 0
    _format.show(rows, [msgspec.to_builtins(step) for step in steps], COLUMNS, options.format)
    return 0


def _row(step: ImageStep, digest: str, options: argparse.Namespace) -> dict[str, str]:
    command = step.created_by.replace("\t", " ")
    if not options.no_trunc and len(command) > LENGTH:
        command = command[: LENGTH - 1] + "…"
    return {
        "ID": _format.digest(digest, short=not options.no_trunc) or "<missing>",
        "CreatedSince": _since(step.created),
        "CreatedAt": step.created,
        "CreatedBy": command,
        "Size": _format.size(step.size_bytes),
        "Comment": step.comment,
    }


def _since(created: str) -> str:
    import datetime

    try:
        return f"{_format.ago(datetime.datetime.fromisoformat(created).timestamp())} ago" if created else "N/A"
    except ValueError:
        return "N/A"
