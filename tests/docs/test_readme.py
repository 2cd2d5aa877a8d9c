"""What the documents say can be typed: commands parse, links lead somewhere, the example is the file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.cli import fcrun, perdure
from perdure.cli.program import group_of

ROOT = Path(__file__).parents[2]
PROGRAMS = {"fcrun": fcrun.PROGRAM, "perdure": perdure.PROGRAM}
DOCUMENTS = [
    *(path for path in ROOT.glob("*.md")),
    *(path for path in (ROOT / "docs").rglob("*.md")),
]


TYPED = [
    "README.md",
    *(f"docs/{name}.md" for name in ("any-language", "roads", "running", "several-servers", "time-travel")),
]


def commands() -> Iterator[Any]:
    """Every indented line of these pages that begins with one of the programs, without its comment."""
    for line in (line for page in TYPED for line in (ROOT / page).read_text().splitlines()):
        if line.startswith("    ") and line.split()[:1] and line.split()[0] in PROGRAMS:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";")
            lexer.whitespace_split = True
            words = list(lexer)
            while words:
                end = words.index(";") if ";" in words else len(words)
                yield pytest.param(words[:end], id=" ".join(words[:end])[:60])
                words = words[end + 1 :]


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_of_the_pages_parses(words: list[str]) -> None:
    program, rest = PROGRAMS[words[0]], words[1:]
    assert rest[0] in program.command_names()
    module = program.command_module(rest.pop(0))
    while (group := group_of(module)) is not None:
        if rest[0] not in group.command_names():
            rest.insert(0, "show")  # perdure log RUN
        assert rest[0] in group.command_names()
        program, module = group, group.command_module(rest.pop(0))
    options = program.parser_of(module).parse_args(rest)
    if words[:2] == ["perdure", "run"] and "examples/" in " ".join(words):
        assert (ROOT / options.words[0].partition(":")[0]).exists()


def test_the_readme_has_the_example_as_it_is() -> None:
    (block,) = re.findall(r"```python\n# examples/research\.py\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    source = (ROOT / "examples/research.py").read_text()
    assert block == source.partition("from __future__ import annotations\n\n")[2]


def test_the_readme_names_the_verbs_of_make() -> None:
    verbs = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"`{' '.join(verb for verb in verbs if verb != 'help')}`" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    gone = [to for to in targets if "://" not in to and not (document.parent / to).exists()]
    assert gone == []
    named = re.findall(r"`((?:docs|src|tests|scripts|examples)/[\w./-]+\.\w+)`", document.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
