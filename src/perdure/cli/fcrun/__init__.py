"""fcrun: sandboxes, as Docker does containers. One module per command, imported only when it runs.

A command module has ``NAME``, ``HELP`` (one line), ``GROUP``, ``configure(parser)`` and ``run(options)``, which gives
the exit status; it imports what is heavy inside ``run``. Modules whose names begin with ``_`` are no commands.
"""

from __future__ import annotations

import argparse
import importlib
import keyword
import os
import sys
from types import ModuleType
from typing import NoReturn

FAILED = 125  # fcrun's own failure, as docker run has it
INTERRUPTED = 130
GROUPS = ("Common commands", "Sandboxes", "Snapshots", "Images", "Host", "System")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"fcrun: {message}\n  See '{self.prog} --help'.\n")
        raise SystemExit(FAILED)


def command_names() -> list[str]:
    """The names of all commands, from the files beside this one."""
    files = os.listdir(os.path.dirname(__file__))  # noqa: PTH120, PTH208 - pathlib costs start time
    return sorted(
        file[:-3].rstrip("_").replace("_", "-") for file in files if file.endswith(".py") and not file.startswith("_")
    )


def command_module(name: str) -> ModuleType:
    """The module of a command."""
    module = name.replace("-", "_")
    return importlib.import_module(f"{__name__}.{module}_" if keyword.iskeyword(module) else f"{__name__}.{module}")


def parser_of(command: ModuleType) -> argparse.ArgumentParser:
    """The command's parser (also the source of its reference page)."""
    parser = _Parser(prog=f"fcrun {command.NAME}", description=command.HELP, allow_abbrev=False, add_help=False)
    parser.add_argument("--help", action="help", help="show this")  # no -h: docker's run means the hostname by it
    command.configure(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        if len(argv) > 1 and argv[0] == "help" and argv[1] in command_names():
            parser_of(command_module(argv[1])).print_help()
            return 0
        sys.stdout.write(_overview())
        return 0
    if argv[0] in ("-v", "--version"):
        argv = ["version", "--short"]
    name = argv[0]
    if name not in command_names():
        return _unknown(name)
    command = command_module(name)
    try:
        options = parser_of(command).parse_args(argv[1:])
        return int(command.run(options))
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # who read us has gone; no trace when Python flushes at exit
        return 128 + 13
    except Exception as error:
        return _report(error)


def _report(error: Exception) -> int:
    from perdure.errors import PerdureError

    if not isinstance(error, PerdureError):
        if os.environ.get("PERDURE_DEBUG"):
            raise error
        sys.stderr.write(f"fcrun: {type(error).__name__}: {error}\n  PERDURE_DEBUG=1 shows where.\n")
        return FAILED
    sys.stderr.write(f"fcrun: {error}\n")
    return error.exit_status if error.exit_status in (126, 127) else FAILED


def _unknown(name: str) -> int:
    import difflib

    near = difflib.get_close_matches(name, command_names(), n=1)
    hint = f"Did you mean '{near[0]}'?" if near else "See 'fcrun --help'."
    sys.stderr.write(f"fcrun: '{name}' is not a fcrun command\n  {hint}\n")
    return FAILED


def _overview() -> str:
    commands = [command_module(name) for name in command_names()]
    text = ["Usage: fcrun COMMAND [OPTIONS]\n\nSandboxes that last: Docker's words, for Firecracker microVMs\n"]
    for group in (*GROUPS, *sorted({str(command.GROUP) for command in commands} - set(GROUPS))):
        members = [command for command in commands if group == command.GROUP]
        if members:
            text.append(f"\n{group}:\n" + "".join(f"  {command.NAME:<10}  {command.HELP}\n" for command in members))
    text.append("\nRun 'fcrun COMMAND --help' for more on a command.\n")
    return "".join(text)
