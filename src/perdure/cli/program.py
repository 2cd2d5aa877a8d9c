"""A command line of one module per command, imported only when it runs, so that it starts at once.

A command's module has ``NAME``, ``HELP`` (one line), ``GROUP``, ``configure(parser)`` and ``run(options)``, which gives
the exit status; it imports what is heavy inside ``run``. Modules whose names begin with ``_`` are no commands.

A module with ``PROGRAM`` instead of ``configure`` and ``run`` is a group: its commands are those of that program.
"""

from __future__ import annotations

import argparse
import importlib
import keyword
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NoReturn

from perdure.cli import booleans

DOCKER_FAILED = 125  # as docker run has it
_UNKNOWN = "unrecognized arguments: "  # argparse's words
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class _Parser(argparse.ArgumentParser):
    usage_status = 2

    def error(self, message: str) -> NoReturn:
        if message.startswith(_UNKNOWN) and (told := self._unknown_flag(message.removeprefix(_UNKNOWN).split()[0])):
            message = told
        sys.stderr.write(f"{self.prog.split()[0]}: {message}\n  See '{self.prog} --help'.\n")
        raise SystemExit(self.usage_status)

    def _unknown_flag(self, word: str) -> str:
        """What to say of a flag that is not known; nothing of another word."""
        if not word.startswith("-") or word == "-":
            return ""
        import difflib

        name = word.partition("=")[0]
        shown = [action for action in self._actions if action.help is not argparse.SUPPRESS]
        known = [option for action in shown for option in action.option_strings if option.startswith("--")]
        near = difflib.get_close_matches(name, known, n=1)
        return f"unknown flag: {name}" + (f"; did you mean {near[0]}?" if near else "")


def _unraisable(told: sys.UnraisableHookArgs) -> None:
    """Ctrl-C within a finalizer or a callback: Python would print it and go on, and the command could never end."""
    if isinstance(told.exc_value, KeyboardInterrupt):
        os._exit(INTERRUPTED)
    sys.__unraisablehook__(told)


class Program:
    """One command line. ``package`` holds its commands; ``groups`` orders them in the overview.

    docker: exit statuses and ``-h`` as docker has them: 125 for every failure of the program's own, and ``-h`` is free.
    usual: the command that is meant where the first word is none. reword: makes of what a daemon says of wrong input
    what a person typed.
    """

    def __init__(
        self,
        name: str,
        package: str,
        folder: str,
        about: str,
        groups: tuple[str, ...],
        *,
        docker: bool = False,
        usual: str = "",
        reword: Callable[[str], str] = str,
    ) -> None:
        self.name, self.package, self.folder, self.about, self.groups = name, package, folder, about, groups
        self._docker = docker
        self.usual = usual
        self._reword = reword

    def command_names(self) -> list[str]:
        files = os.listdir(self.folder)
        return sorted(file[:-3].rstrip("_") for file in files if file.endswith(".py") and not file.startswith("_"))

    def command_module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self.package}.{name}{'_' if keyword.iskeyword(name) else ''}")

    def parser_of(self, command: ModuleType) -> argparse.ArgumentParser:
        """The command's parser (also the source of its reference page)."""
        description = getattr(command, "DESCRIPTION", command.HELP)
        prog = f"{self.name} {command.NAME}"
        parser = _Parser(prog=prog, description=description, allow_abbrev=False, add_help=False)
        parser.usage_status = self._status(2)
        parser.add_argument(*(["--help"] if self._docker else ["-h", "--help"]), action="help", help="show this")
        command.configure(parser)
        return parser

    def pages(self) -> Iterator[tuple[str, str]]:
        """(full name, help) of every command, those of groups after the group's own."""
        for name in self.command_names():
            command = self.command_module(name)
            if (group := group_of(command)) is not None:
                yield group.name, group.overview()
                yield from group.pages()
            else:
                parser = self.parser_of(command)
                yield parser.prog, parser.format_help()

    def _status(self, usual: int) -> int:
        """The exit status of a failure of our own."""
        return DOCKER_FAILED if self._docker and usual not in (126, 127) else usual

    def main(self, argv: list[str] | None = None) -> int:
        """Run one command; its exit status."""
        argv = sys.argv[1:] if argv is None else argv
        if self._docker:
            argv, host = split_host(argv)
            if host is not None:
                os.environ["FCRUN_HOST"] = host
        names = self.command_names()
        if argv[:1] == ["help"] and len(argv) > 1 and argv[1] in names:
            argv = [argv[1], "--help"]
        if not argv or argv[0] in ("-h", "--help", "help"):
            sys.stdout.write(self.overview())
            return 0
        if argv[0] in ("-v", "--version") or (argv[0] == "version" and "version" not in names):
            from perdure import __version__

            print(f"{self.name} {__version__}")
            return 0
        if argv[0] not in names and self.usual:
            argv = [self.usual, *argv]
        if argv[0] not in names:
            return self._unknown(argv[0], names)
        command = self.command_module(argv[0])
        if (group := group_of(command)) is not None:
            return group.main(argv[1:])
        sys.unraisablehook = _unraisable
        try:
            parser = self.parser_of(command)
            options = parser.parse_args(booleans.plain(parser, argv[1:]) if self._docker else argv[1:])
            return int(command.run(options))
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else self._status(1)
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # who read us has gone; no trace when Python flushes at exit
            return 128 + 13
        except Exception as error:
            return self._report(error)

    def _report(self, error: Exception) -> int:
        from perdure.errors import AgentInvalid, InvalidValue, PerdureError

        name = self.name.split()[0] if self.usual else self.name
        if isinstance(error, PerdureError):
            is_typed = isinstance(error, InvalidValue) and not isinstance(error, AgentInvalid)  # that is in a file
            sys.stderr.write(f"{name}: {self._reword(str(error)) if is_typed else error}\n")
            return self._status(error.exit_status)
        if os.environ.get("PERDURE_DEBUG"):
            raise error
        sys.stderr.write(f"{name}: {type(error).__name__}: {error}\n  PERDURE_DEBUG=1 shows where.\n")
        return self._status(1)

    def _unknown(self, name: str, names: list[str]) -> int:
        import difflib

        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"See '{self.name} --help'."
        sys.stderr.write(f"{self.name}: '{name}' is not a {self.name} command\n  {hint}\n")
        return self._status(2)

    def overview(self) -> str:
        """What it prints when it is given no command."""
        import shutil
        import textwrap

        commands = list(dict.fromkeys(self.command_module(name) for name in self.command_names()))
        about = textwrap.fill(self.about, shutil.get_terminal_size().columns - 2)  # as argparse does it
        text = [f"Usage: {self.name} COMMAND [OPTIONS]\n\n{about}\n"]
        for group in self.groups:
            members = [command for command in commands if group == command.GROUP]
            text.append(f"\n{group}:\n" + "".join(f"  {command.NAME:<10}  {command.HELP}\n" for command in members))
        if self._docker and " " not in self.name:
            text.append(
                "\nOptions:\n"
                "  -H, --host HOST  the node to talk to: tcp://HOST:PORT or unix:///PATH (FCRUN_HOST); over TCP with\n"
                "                   FCRUN_TOKEN or FCRUN_TOKEN_FILE, and FCRUN_FINGERPRINT or FCRUN_CA\n"
            )
        text.append(f"\nRun '{self.name} COMMAND --help' for more on a command.\n")
        return "".join(text)


def split_host(argv: list[str]) -> tuple[list[str], str | None]:
    """The words without the ``-H HOST``, ``--host HOST`` or ``--host=HOST`` that they may begin with, and that HOST."""
    if argv[:1] and argv[0].startswith("--host="):
        return argv[1:], argv[0].removeprefix("--host=")
    if argv[:1] in (["-H"], ["--host"]) and len(argv) > 1:
        return argv[2:], argv[1]
    return argv, None


def group_of(command: ModuleType) -> Program | None:
    """Its commands, where it is a group of them."""
    found = getattr(command, "PROGRAM", None)
    return found if isinstance(found, Program) else None
