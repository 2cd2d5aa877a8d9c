"""fcrun exec"""

from __future__ import annotations

import argparse

from perdure.cli.fcrun._process import add_process_options, add_terminal_options, check_keys, environment
from perdure.cli.fcrun._refused import PRIVILEGED, add_refused

NAME = "exec"
HELP = "Run a command in a sandbox (a suspended one is resumed first)"
GROUP = "Common commands"


def configure(parser: argparse.ArgumentParser) -> None:
    add_process_options(parser)
    add_terminal_options(parser, signals=False)
    add_refused(parser, [PRIVILEGED])
    parser.add_argument("sandbox", metavar="SANDBOX")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND [ARG...]")


def run(options: argparse.Namespace) -> int:
    from perdure.cli.fcrun import _terminal
    from perdure.cli.fcrun._node import node, tell_waking
    from perdure.model import ExecSpec

    check_keys(options)
    rows, columns = _terminal.size() if options.tty else (0, 0)
    spec = ExecSpec(
        command=options.command,
        env=environment(options.env, options.env_file),
        cwd=options.workdir,
        user=options.user,
        tty=options.tty,
        stdin=options.interactive and not options.detach,
        rows=rows,
        columns=columns,
    )
    if not options.detach:
        _terminal.check_tty(tty=spec.tty, stdin=spec.stdin)
    with node() as client:
        if options.detach:
            client.exec_detached(options.sandbox, spec)
            return 0
        session = client.exec(options.sandbox, spec)
    session.on_state = lambda state: tell_waking(options.sandbox) if state == "resuming" and not spec.tty else None
    with session:
        status = _terminal.Terminal(tty=spec.tty, stdin=spec.stdin, detach_keys=options.detach_keys).run(session)
    return 0 if status == _terminal.DETACHED else status
