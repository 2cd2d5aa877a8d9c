"""fcrun cp"""

from __future__ import annotations

import argparse
import sys

NAME = "cp"
HELP = "Copy files between a sandbox and this machine"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-a", "--archive", action="store_true", help="keep owners (else into a sandbox: root's; out of one: yours)"
    )
    parser.add_argument("-L", "--follow-link", action="store_true", help="copy what a symbolic link SOURCE points to")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing (as where stderr is no terminal)")
    parser.add_argument("source", metavar="SANDBOX:PATH|PATH|-", help="-: a tar stream from stdin")
    parser.add_argument("target", metavar="SANDBOX:PATH|PATH|-", help="-: a tar stream to stdout")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun import _copy, _format
    from perdure.cli.fcrun._node import node
    from perdure.errors import InvalidValue

    source, target = _copy.place(options.source), _copy.place(options.target)
    if (source.sandbox is None) == (target.sandbox is None):
        raise InvalidValue("one side must be in a sandbox and the other must not", hint="fcrun cp FILE SANDBOX:PATH")
    how = {"follow": options.follow_link, "keep_owner": options.archive}
    with node() as client:
        if target.sandbox is not None:
            count = _copy.into(client, source.path, target.sandbox, target.path, **how)
        else:
            assert source.sandbox is not None
            count = _copy.out_of(client, source.sandbox, source.path, target.path, **how)
    if not options.quiet and sys.stderr.isatty():
        sys.stderr.write(f"Successfully copied {_format.size(count)} to {options.target}\n")
    return 0
