"""perdure log export"""

from __future__ import annotations

import argparse
import os

NAME = "export"
HELP = "Write a run's whole log to a file that verifies by itself"
GROUP = "Runs"
DESCRIPTION = (
    "Writes all branches of a run's context log, with their large values, as lines of JSON. The file verifies without "
    "a server ('perdure log verify --file'), and 'perdure log import' takes it up elsewhere."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="id, unique prefix of it, or name")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to (default: stdout)")


def run(options: argparse.Namespace) -> int:
    import sys

    from perdure.cli.perdure import _progress
    from perdure.client.server import ServerClient
    from perdure.errors import InvalidValue

    lines = _progress.counted(ServerClient().export(options.run_id), "exported")
    if options.output is None:
        for line in lines:
            sys.stdout.buffer.write(line)
        sys.stdout.flush()
        return 0
    new = options.output + ".new"  # what is cut off is never under the name that was asked for
    try:
        with open(new, "wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, options.output)
    except BaseException as error:
        if os.path.exists(new):
            os.unlink(new)
        if isinstance(error, OSError):
            raise InvalidValue(f"{options.output} cannot be written: {error.strerror}") from error
        raise
    return 0
