"""fcrun save"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

NAME = "save"
HELP = "Write images to an archive that docker, podman, skopeo and `fcrun load` read"
GROUP = "Images"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", default="", metavar="FILE", help="instead of stdout")
    parser.add_argument("images", nargs="+", metavar="IMAGE")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node
    from perdure.errors import InvalidValue

    if not options.output and sys.stdout.isatty():
        raise InvalidValue("an archive on a terminal is of no use", hint="Name a file (-o FILE), or pipe it.")
    with node() as client:
        pieces = client.library.save(options.images)
        if options.output:
            _write(options.output, pieces)
        else:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    return 0


def _write(path: str, pieces: Iterator[bytes]) -> None:
    """All of it or nothing: the file gets its name when it is whole."""
    import os
    import tempfile

    from perdure.errors import InvalidValue, NoSpace

    folder, name = os.path.split(path)
    first = next(pieces, b"")  # an image that is not there leaves an older file alone
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "wb") as device:
                device.write(first)
                device.writelines(pieces)
            return
        with tempfile.NamedTemporaryFile("wb", prefix=f".{name}-", dir=folder or ".", delete=False) as file:
            try:
                file.write(first)
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fchmod(file.fileno(), 0o600)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        import errno

        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{path}: {error.strerror}", hint="Free some space, or name another disk.") from error
        raise InvalidValue(f"--output {path}: {error.strerror}") from error
