"""fcrun inspect"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from perdure.cli.fcrun import _inspection

if TYPE_CHECKING:
    from perdure.client.node import NodeClient

NAME = "inspect"
HELP = "Show all that is known of sandboxes or images, as JSON"
GROUP = "Sandboxes"
DESCRIPTION = (
    f"{HELP}: docker's fields, whose names begin with a capital, and fcrun's own: state, spec, snapshot, machine …"
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--format", default="json", metavar="FORMAT", help="'json' or a template: '{{.State.Status}}'"
    )
    parser.add_argument(
        "--type", default="", choices=["sandbox", "container", "image"], help="else: a sandbox, or else an image"
    )
    parser.add_argument("names", nargs="+", metavar="SANDBOX|IMAGE")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun import _views
    from perdure.cli.fcrun._node import node
    from perdure.errors import NotFound

    found, missing = [], []
    with node() as client:
        for ref in options.names:
            try:
                if options.type == "image":
                    found.append(client.library.inspect(ref))
                    continue
                info = client.get(ref)
                known = msgspec.to_builtins(info) | {"snapshots": msgspec.to_builtins(client.snapshots(ref))}
                config = (_image(client, info.image_digest) or {}).get("Config") or {}
                found.append(_views.inspected(info, config) | known)
            except NotFound as error:
                if options.type == "" and (image := _image(client, ref)) is not None:
                    found.append(image)
                else:
                    missing.append(error)
    return _inspection.show(found, missing, options.format)


def _image(client: NodeClient, ref: str) -> dict[str, Any] | None:
    from perdure.errors import PerdureError

    try:
        return client.library.inspect(ref)
    except PerdureError:
        return None
