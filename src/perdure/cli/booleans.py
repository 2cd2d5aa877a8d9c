"""``--flag=true`` and ``--flag=false``, as docker has them of any flag, in the words of argparse: there, or not.

The last one about a flag is what counts, also where it was one of several letters: ``-it --tty=false``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

_WORDS = dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True)
_WORDS |= dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False)


def plain(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """The same words for the parser, the last of several about one flag. What belongs to a command to run stays."""
    known = {option: action for action in parser._actions for option in action.option_strings}
    is_command_last = any(action.nargs == argparse.REMAINDER for action in parser._actions)
    found: list[list[str]] = []  # an option with its value, or a word that is none
    rest = list(words)
    while rest:
        word = rest.pop(0)
        is_option = word.startswith("-") and word != "-"
        if word == "--" or (is_command_last and not is_option):
            found.append([word, *rest])
            break
        name, equals, value = word.partition("=")
        if equals and value in _WORDS and (flags := _flags(known, name)):
            *others, last = flags
            found += [[flag] for flag in others]
            found = [one for each in found if (one := _without(known, each, known[last]))]
            found += [[last]] * _WORDS[value]
            continue
        if is_option and word in known and known[word].nargs == "?":
            found.append([f"{word}={rest.pop(0) if rest and rest[0] in _WORDS else 'true'}"])
            continue
        found.append([word])
        if rest and is_option and _letters(known, word)[1]:
            found[-1].append(rest.pop(0))
    return [word for each in found for word in each]


def _flags(known: Mapping[str, argparse.Action], name: str) -> list[str]:
    """The flags that an option stands for: itself, or those of its letters. None, where one of them takes a value."""
    flags = [name] if name.startswith("--") else [f"-{letter}" for letter in name[1:]]
    return flags if all(flag in known and known[flag].nargs == 0 for flag in flags) else []


def _letters(known: Mapping[str, argparse.Action], word: str) -> tuple[int, bool]:
    """How many letters of an option are flags, and whether the next word is its value."""
    if word.startswith("--"):
        return 0, "=" not in word and word in known and known[word].nargs is None
    for place, letter in enumerate(word[1:]):
        action = known.get(f"-{letter}")
        if action is None or action.nargs != 0:  # what follows in the word is its value
            return place, action is not None and action.nargs is None and place == len(word) - 2
    return len(word) - 1, False


def _without(known: Mapping[str, argparse.Action], words: list[str], flag: argparse.Action) -> list[str]:
    """The same, but for this flag."""
    option, *value = words
    if option in flag.option_strings:
        return []
    if not option.startswith("-") or option.startswith("--") or option == "-":
        return words
    count, _ = _letters(known, option)
    kept = "".join(letter for letter in option[1 : count + 1] if f"-{letter}" not in flag.option_strings)
    kept += option[count + 1 :]
    return [f"-{kept}", *value] if kept else []
