"""docs/crash-matrix.md: each of the programs of ``make crash`` writes its own section."""

from __future__ import annotations

import subprocess
from pathlib import Path

PAGE = Path("docs/crash-matrix.md")
TITLES = {
    "sqlite": "A server at each of its durable writes, on SQLite",
    "postgres": "A server at each of its durable writes, on PostgreSQL",
    "servers": "Servers that share a PostgreSQL",
    "states sqlite": "The parts of a microVM in each state of its run, on SQLite",
    "states postgres": "The parts of a microVM in each state of its run, on PostgreSQL",
    "random sqlite": "The parts of microVMs at random instants, on SQLite",
    "random postgres": "The parts of microVMs at random instants, on PostgreSQL",
}
TESTED = ("src", "guest", "pager", "collector", ":!src/perdure/testing")
HEAD = """# The crash matrix

Written by `make crash` ([testing.md](testing.md) says what it does and what must hold after each life).
"""


def write(title: str, text: str) -> None:
    """Replace a section; the others stay as they are."""
    sections = _sections(PAGE.read_text() if PAGE.exists() else "")
    sections[title] = text.strip() + "\n"
    known = [name for name in TITLES.values() if name in sections]
    PAGE.write_text(HEAD + "".join(f"\n## {name}\n\n{sections[name].strip()}\n" for name in known))


def _sections(page: str) -> dict[str, str]:
    parts = page.split("\n## ")[1:]
    return {title: text for title, _, text in (part.partition("\n") for part in parts)}


def revision() -> str:
    """Of what is under test, in words: the newest commit that changed any of it."""
    known = _git("log", "-1", "--format=%h", "--", *TESTED)
    changed = _git("status", "--porcelain", "--", *TESTED)
    return f"revision {known or 'unknown'}" + (", changed" if changed else "")


def _git(*words: str) -> str:
    """What it says; nothing outside of a checkout."""
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
