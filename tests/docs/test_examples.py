"""What the examples say at their tops can be typed. That they run is shown in tests/integration/agent,
tests/integration/replay and tests/vm."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from perdure.cli import fcrun, perdure

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").iterdir())
PROGRAMS = {"fcrun": fcrun.PROGRAM, "perdure": perdure.PROGRAM}
HEAD = re.compile(r'^""".*?^"""|(?:^#.*\n)+', re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    found = []
    for path in (path for path in EXAMPLES if path.is_file()):
        head = HEAD.match(path.read_text())
        assert head is not None, path
        found += re.findall(r"^(?:#? *|printf .*\| )((?:fcrun|perdure) .*)$", head[0], re.MULTILINE)
    return found


@pytest.mark.parametrize("command", commands())
def test_a_command_can_be_typed(command: str) -> None:
    program, *words = shlex.split(command)
    parser = PROGRAMS[program].parser_of(PROGRAMS[program].command_module(words[0]))
    parser.parse_args(words[1:])
    for path in re.findall(r"examples/[\w.]+", command):
        assert (ROOT / path).is_file()


def test_all_are_listed() -> None:
    page = (ROOT / "docs" / "agents.md").read_text()
    assert {path.name for path in EXAMPLES if path.is_file()} == set(re.findall(r"\(\.\./examples/([\w.]+)\)", page))
