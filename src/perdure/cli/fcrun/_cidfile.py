"""``--cidfile``, as Docker has it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.client.node import NodeClient
    from perdure.model import SandboxInfo


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cidfile", default="", metavar="FILE", help="write the sandbox's id to this new file")


def write(client: NodeClient, info: SandboxInfo, options: argparse.Namespace) -> None:
    """Where it is asked for. Raises InvalidValue; then the sandbox is removed."""
    if not options.cidfile:
        return
    from perdure.errors import InvalidValue

    try:
        with open(options.cidfile, "x", encoding="ascii") as file:
            file.write(info.id)
    except BaseException as error:
        client.remove(info.id, force=True)
        if isinstance(error, OSError):
            raise InvalidValue(f"--cidfile {options.cidfile}: {error.strerror}") from error
        raise
