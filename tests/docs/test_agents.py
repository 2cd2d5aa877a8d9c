"""docs/agents.md: its examples are the files, and its commands can be typed. That the examples run is shown in
tests/integration/agent/test_examples.py."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest

from perdure.agent.context import Context
from perdure.agent.declaration import agent
from perdure.cli import perdure

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "agents.md").read_text()
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    perdure ")]


@pytest.mark.parametrize("name", re.findall(r"```python\n# (examples/\w+\.py)\n", PAGE))
def test_an_example_is_the_file(name: str) -> None:
    (block,) = re.findall(rf"```python\n# {re.escape(name)}\n(.*?)```", PAGE, re.DOTALL)
    assert block == (ROOT / name).read_text().partition("from __future__ import annotations\n\n")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_can_be_typed(command: str) -> None:
    words = shlex.split(command)[1:]
    module = perdure.PROGRAM.command_module(words[0])
    perdure.PROGRAM.parser_of(module).parse_args(words[1:])


def test_what_it_says_of_ctx_is_there() -> None:
    named = set(re.findall(r"`ctx\.(\w+)", PAGE))
    there = {name for name in vars(Context) if not name.startswith("_")} | {"run_id"}
    assert named == there


def test_what_it_says_of_agent_is_there() -> None:
    (told,) = re.findall(r"`@agent\(…\)` says (.*?)\n\n", PAGE, re.DOTALL)
    said = {name for name, p in inspect.signature(agent).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert set(re.findall(r"`(\w+)`", told)) == said  # besides the function itself
