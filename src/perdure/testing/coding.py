"""What a coding agent works on in tests: a small repository with a bug, and a model that mends it by its tools."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from perdure.testing.speeches import chat, chat_calls

BROKEN = "def owls(nests):\n    return sum(nests[1:])\n"
MENDED = "def owls(nests):\n    return sum(nests)\n"
TESTS = """import unittest

from owls import owls


class TestOwls(unittest.TestCase):
    def test_all_nests_count(self):
        self.assertEqual(owls([1, 2, 3]), 6)
"""
RUN_TESTS = "python3 -m unittest"
SAID = "All nests count now."
_OURS = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main")


def repository(folder: Path) -> Path:
    """A bare one, with one commit, whose tests fail."""
    tree = folder / "first"
    tree.mkdir(parents=True)
    (tree / "owls.py").write_text(BROKEN)
    (tree / "test_owls.py").write_text(TESTS)
    (tree / ".gitignore").write_text("__pycache__/\n")
    git(tree, "init", "--quiet")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "-m", "Count owls")
    git(folder, "clone", "--quiet", "--bare", str(tree), "owls.git")
    return folder / "owls.git"


def git(at: Path, *words: str) -> str:
    return subprocess.run(["git", *_OURS, *words], cwd=at, check=True, capture_output=True, text=True).stdout


def turns() -> list[dict[str, Any]]:
    """What the model says: it asks for a file that is not there, too."""
    return [
        chat_calls(("run", {"command": RUN_TESTS}), ("read", {"path": "nothing.py"})),
        chat_calls(("read", {"path": "owls.py"})),
        chat_calls(("write", {"path": "owls.py", "content": MENDED})),
        chat_calls(("run", {"command": RUN_TESTS})),
        chat(SAID),
    ]


def heard(asked: list[Any]) -> list[str]:
    """The results of tools that the model was told in its last question."""
    return [message["content"] for message in asked[-1]["messages"] if message["role"] == "tool"]
