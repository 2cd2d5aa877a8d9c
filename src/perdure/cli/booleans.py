"""``--flag=true`` and ``--flag=false``, as docker has them of any flag, in the words of argparse: there, or not."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

_WORDS = dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True)
_WORDS |= dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False)


def plain(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """The same words for the parser, the last of several about one flag. What belongs to a command to run stays."""
    known = {option: action for action in parser._actions for option in action.option_strings}
    is_command_last = any(action.nargs == argparse.REMAINDER for action in parser._actions)
    found: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        is_option = word.startswith("-") and word != "-"
        if word == "--" or (is_command_last and not is_option):
            return [*found, word, *rest]
        name, equals, value = word.partition("=")
        action = known.get(name)
        if equals and action is not None and action.nargs == 0 and value in _WORDS:
            found = [one for one in found if one not in action.option_strings]
            found += [name] * _WORDS[value]
            continue
        found.append(word)
        if rest and is_option and _wants_next(known, word):
            found.append(rest.pop(0))
    return found


def _wants_next(known: Mapping[str, argparse.Action], word: str) -> bool:
    """Whether the next word is this option's value."""
    if word.startswith("--"):
        return "=" not in word and word in known and known[word].nargs is None
    for place, letter in enumerate(word[1:], 1):
        action = known.get(f"-{letter}")
        if action is None or action.nargs != 0:  # what follows in the word is its value
            return action is not None and action.nargs is None and place == len(word) - 1
    return False
