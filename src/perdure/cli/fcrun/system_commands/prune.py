"""fcrun system prune"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from perdure.cli.fcrun import _format

if TYPE_CHECKING:
    from collections.abc import Callable

    from perdure.client.node import NodeClient

NAME = "prune"
HELP = "Remove sandboxes that are over, and images, snapshots and templates that nothing needs"
GROUP = "System"
OVER = ("created", "exited")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-a", "--all", action="store_true", help="every image without a sandbox, not only those without a name"
    )
    parser.add_argument("--volumes", action="store_true", help="volumes without a name that no sandbox has, too")
    parser.add_argument("-f", "--force", action="store_true", help="do not ask")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import FAILED, node

    if not options.force and not _agreed(every=options.all, volumes=options.volumes):
        return 0
    with node() as client:
        before = _bytes(client)
        over = [info.name for info in client.list() if info.state in OVER]
        well = _remove("Deleted sandboxes:", over, client.remove)
        well &= _remove("Deleted images:", _unused(client, every=options.all), client.remove_image)  # by now
        client.registries.sweep()
        if options.volumes:
            unused = [volume.name for volume in client.volumes.list() if volume.anonymous and not volume.users]
            _tell("Deleted volumes:", client.volumes.prune(unused))
        swept = client.store.collect()
        _tell("Deleted snapshots:", [_format.digest(digest) for digest in swept.forgotten])
        _tell("Deleted templates:", swept.templates)
        print(f"Total reclaimed space: {_format.size(max(0, before - _bytes(client)))}")
    return 0 if well else FAILED


def _remove(what: str, names: list[str], remove: Callable[[str], None]) -> bool:
    """Whether all are gone; what is not is told on stderr."""
    from perdure.errors import NotFound, PerdureError

    gone, well = [], True
    for name in names:
        try:
            remove(name)
            gone.append(name)
        except NotFound:
            pass  # somebody else was quicker
        except PerdureError as error:
            sys.stderr.write(f"fcrun: {error}\n")
            well = False
    _tell(what, gone)
    return well


def _tell(what: str, names: list[str]) -> None:
    if names:
        print(what, *names, "", sep="\n")


def _bytes(client: NodeClient) -> int:
    return sum(use.size_bytes for use in client.disk_use())


def _agreed(*, every: bool, volumes: bool) -> bool:
    from perdure.errors import InvalidValue

    images = "all images without a sandbox" if every else "all images without a name and without a sandbox"
    print(
        "WARNING! This will remove:",
        "  - all sandboxes that have exited or never ran, with their files and snapshots",
        f"  - {images}",
        *["  - all volumes without a name and without a sandbox"] * volumes,
        "  - all snapshots and templates that no sandbox and no tag needs",
        sep="\n",
    )
    if not sys.stdin.isatty():
        raise InvalidValue("nobody can be asked here", hint="fcrun system prune --force")
    return input("Are you sure you want to continue? [y/N] ").strip().lower() in ("y", "yes")


def _unused(client: NodeClient, *, every: bool) -> list[str]:
    used = {info.image_digest for info in client.list()}
    found = [image for image in client.images() if image.digest not in used]
    return [image.name or image.digest for image in found if every or not image.name]
