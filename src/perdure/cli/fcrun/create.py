"""fcrun create"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun import _cidfile, _mounts, _registry
from perdure.cli.fcrun._process import add_process_options, add_sandbox_options, spec_of

NAME = "create"
HELP = "Create a sandbox without starting it"
GROUP = "Sandboxes"


def configure(parser: argparse.ArgumentParser) -> None:
    add_process_options(parser, detach=False)
    _cidfile.add_option(parser)
    add_sandbox_options(parser)
    _registry.add_pull_options(parser)
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND [ARG...]")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun._node import node

    spec = spec_of(options)
    with node(quiet=options.quiet) as client:
        info = _registry.created(client, spec, options)
        _mounts.copy_in(client, info)
        _cidfile.write(client, info, options)
        print(info.id)
    return 0
