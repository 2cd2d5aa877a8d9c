"""fcrun run"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun._process import add_process_options, add_sandbox_options, spec_of

NAME = "run"
HELP = "Create a sandbox from an image and run a command in it"
GROUP = "Common commands"


def configure(parser: argparse.ArgumentParser) -> None:
    add_process_options(parser)
    parser.add_argument("--cidfile", default="", metavar="FILE", help="write the sandbox's id to this new file")
    add_sandbox_options(parser)


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun import _terminal
    from perdure.cli.fcrun._node import node

    spec = spec_of(options)
    if not options.detach:
        _terminal.check_tty(tty=spec.tty, stdin=spec.stdin)
    with node() as client:
        info = client.create(spec)
        if options.cidfile:
            _write_id(options.cidfile, info.id)
        if options.detach:
            client.start(info.id)
            print(info.id)
            return 0
        session = client.attach(info.id)
        try:
            client.start(info.id)
        except KeyboardInterrupt:
            client.remove(info.id, force=True)
            raise
    return _terminal.follow_main(client, info.id, session, tty=spec.tty, stdin=spec.stdin, from_start=True)


def _write_id(path: str, sandbox_id: str) -> None:
    from perdure.errors import InvalidValue

    try:
        with open(path, "x", encoding="ascii") as file:  # noqa: PTH123 - pathlib costs start time
            file.write(sandbox_id)
    except OSError as error:
        raise InvalidValue(f"--cidfile {path}: {error.strerror}") from error
