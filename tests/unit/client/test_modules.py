"""The modules beside an agent's file are found without running any of them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from perdure.client.modules import MAX_BYTES, beside
from perdure.errors import AgentInvalid, TooLarge


def laid(folder: Path, **files: str) -> Path:
    """Files by their paths, with ``__`` for a slash and none for ``.py``."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "agent.py"


def test_what_it_imports_from_beside_it_is_found_and_what_that_imports(tmp_path: Path) -> None:
    file = laid(tmp_path, search="import words\nimport agent, json", words="", other="raise SystemExit", late="x = (")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("from deep.down import below")
    (tmp_path / "tools" / "prompt.md").write_text("Be kind.")
    (tmp_path / "tools" / "__pycache__").mkdir()
    (tmp_path / "tools" / "__pycache__" / "x.pyc").write_text("")
    (tmp_path / "tools" / ".hidden").write_text("")
    laid(tmp_path, deep__down__below="", deep__more="")
    (tmp_path / "deep" / "data.bin").write_bytes(b"\0" * 10)  # it is no package: it may be anything
    source = "import json, search, tools.x\nfrom perdure import agent\n\ndef f():\n    from late import y\n"
    found = beside(source, file)
    names = ["deep/down/below.py", "deep/more.py", "late.py", "search.py", "tools/__init__.py", "tools/prompt.md"]
    assert list(found) == [*names, "words.py"]
    assert base64.b64decode(found["tools/prompt.md"]) == b"Be kind."


def test_a_package_comes_before_a_module_of_its_name_and_a_module_before_a_folder(tmp_path: Path) -> None:
    file = laid(tmp_path, one="", two="", two__part="", perdure="")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "__init__.py").write_text("")
    assert list(beside("import one, two, perdure", file)) == ["one/__init__.py", "two.py"]


def test_what_is_too_large_or_cannot_be_read_is_said(tmp_path: Path) -> None:
    file = laid(tmp_path, big="#" * MAX_BYTES, more="# one more")
    with pytest.raises(TooLarge, match=r"more than 16 MiB, with .*more\.py"):
        beside("import more, big", file)
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "__init__.py").write_text("")
    (tmp_path / "gone" / "x.py").symlink_to("/proc/self/mem")  # which opens, and does not read
    with pytest.raises(AgentInvalid, match=r"gone/x\.py is imported, and cannot be read"):
        beside("import gone", file)
