"""What a shell may offer next on a command line of a ``Program``, and the script with which it asks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence

from perdure.cli.program import Program, group_of
from perdure.errors import InvalidValue

# Each asks `NAME completion --words` with what is typed so far, and takes files where that has nothing to say.
SCRIPTS = {
    "bash": """\
_NAME() {
    local words
    words=$(NAME completion --words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    local IFS=$'\\n'
    COMPREPLY=($words)
}
complete -o default -F _NAME NAME
""",
    "zsh": """\
_NAME() {
    local -a found
    found=(${(f)"$(NAME completion --words "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( ${#found} )); then compadd -a found; else _files; fi
}
compdef _NAME NAME
""",
    "fish": """\
function __NAME_words
    set -l typed (commandline -opc) (commandline -ct)
    NAME completion --words $typed[2..] 2>/dev/null
end
complete -c NAME -a '(__NAME_words)'
""",
}

Names = Callable[[str], Iterable[str]]  # what there is of a kind, by the metavar of the argument: SANDBOX, IMAGE …


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of the command ``completion``."""
    parser.add_argument("shell", nargs="?", choices=sorted(SCRIPTS), help="bash, fish or zsh")
    parser.add_argument("--words", nargs=argparse.REMAINDER, metavar="WORD", help="what may come next: for the scripts")


def script(name: str, shell: str) -> str:
    """The script that completes the words of the program ``name``."""
    if not shell:
        raise InvalidValue("which shell?", hint=f"{name} completion bash, fish or zsh")
    return SCRIPTS[shell].replace("NAME", name)


def candidates(program: Program, words: Sequence[str], names: Names) -> list[str]:
    """The completions of the last of ``words``, which follow the program's name; sorted.

    Empty also where files are meant: the shell knows those.
    """
    *before, current = words or [""]
    if not before:
        usual = candidates(program, [program.usual, current], names) if program.usual else []
        return sorted({*usual, *_starting(current, program.command_names())})
    if before[0] not in program.command_names():
        return candidates(program, [program.usual, *words], names) if program.usual else []
    command = program.command_module(before[0])
    if (group := group_of(command)) is not None:
        return candidates(group, [*before[1:], current], names)
    parser = program.parser_of(command)
    wanted = _argument(parser, before[1:])
    if wanted is not None and wanted.option_strings:
        return _starting(current, _values(wanted, names))
    if current.startswith("-"):
        shown = [option for option, action in _options(parser).items() if action.help is not argparse.SUPPRESS]
        return _starting(current, [option for option in shown if option.startswith("--")])
    return _starting(current, _values(wanted, names)) if wanted is not None else []


def _argument(parser: argparse.ArgumentParser, before: Sequence[str]) -> argparse.Action | None:
    """Which argument comes next; None: none does, or what follows is another program's."""
    options = _options(parser)
    positionals = [action for action in parser._actions if not action.option_strings]
    waiting: argparse.Action | None = None
    count = 0
    for word in before:
        if waiting is not None:
            waiting = None
        elif word in options:
            action = options[word]
            waiting = action if action.nargs != 0 else None
        elif not word.startswith("-") or word == "-":
            count += 1
            if count <= len(positionals) and positionals[count - 1].nargs == argparse.REMAINDER:
                return None
    if waiting is not None:
        return waiting
    if count < len(positionals):
        return positionals[count] if positionals[count].nargs != argparse.REMAINDER else None
    last = positionals[-1] if positionals else None
    return last if last is not None and last.nargs in ("*", "+") else None


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {option: action for action in parser._actions for option in action.option_strings}


def _values(action: argparse.Action, names: Names) -> Iterable[str]:
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    return names(action.metavar) if isinstance(action.metavar, str) else []


def _starting(current: str, found: Iterable[str]) -> list[str]:
    return sorted({each for each in found if each.startswith(current)})
