"""Names for sandboxes whose user gave none: an adjective and a surname from the history of persistence and memory."""

from __future__ import annotations

import difflib
import re
import secrets
from collections.abc import Container, Sequence

from perdure.errors import InvalidValue

_ADJECTIVES = """
agile amber ancient apt astute awake bold brave breezy bright brisk calm candid careful clever cosmic crisp
curious daring deft eager earnest easy elated epic fair fearless festive fluent fond frank gentle gifted glad
golden graceful grand happy hardy hearty honest hopeful humble jolly jovial keen kind lasting lively loyal lucid
lucky mellow merry mighty modest nimble noble patient placid plucky poised polite proud quick quiet radiant
ready robust sage serene sharp silent sincere sleepy snug sober solid spry stable steady stoic sturdy subtle
sunny sure swift tender tidy tranquil true trusty upbeat valiant vivid warm wise witty zesty
"""
_SURNAMES = """
babbage backus bartik bohm boole brooks carr cerf church clarke codd conway corbato curry dahl dean denning
dijkstra eckert engelbart floyd forrester franklin goldberg gosling gray hamilton hamming hopper hoare holberton
iverson johnson jones kahn kay keller kernighan kilburn knuth kruskal lamport lampson lampert landin lovelace
liskov mccarthy mcilroy meitner milner minsky moore naur newell noyce nygaard parnas pascal perlis postel rabin
ritchie ritter rivest sammet shannon shaw simon stallman steele stibitz sutherland tarjan thacker thompson
torvalds turing ulam valiant wheeler wilkes wilkinson wirth yao zuse
"""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}\Z")


def random_name(taken: Container[str]) -> str:
    """A name like ``steady_hopper`` that is not taken; numbered when luck runs out."""
    for _ in range(16):
        name = f"{secrets.choice(_ADJECTIVES.split())}_{secrets.choice(_SURNAMES.split())}"
        if name not in taken:
            return name
    number = 2
    while f"{name}{number}" in taken:
        number += 1
    return f"{name}{number}"


def hint(wanted: str, names: Sequence[str]) -> str:
    """What to do where nothing has the name that was wanted."""
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.7)
    return f"Did you mean {near[0]}? `fcrun ps -a` lists all." if near else "`fcrun ps -a` lists all."


def check_name(name: str) -> str:
    """The name. Raises InvalidValue unless it is 1 to 63 letters, digits and ``_.-``, no sign first."""
    if not _NAME.match(name):
        raise InvalidValue(
            f"invalid sandbox name {name!r}",
            hint="Use at most 63 letters, digits, '_', '.' and '-', beginning with a letter or a digit.",
        )
    return name
