"""The modules beside an agent's file that it imports, found as the file itself is read: without running anything."""

from __future__ import annotations

import ast
import base64
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import AgentInvalid, TooLarge

MAX_BYTES = 16 << 20
_OWN = "perdure"  # the SDK is the server's


def beside(source: str, file: Path) -> dict[str, str]:
    """By path relative to the file's folder, in base64 (as JSON carries them): each ``NAME.py`` that is imported, by
    its text or by that of another one, and each package as a whole. ``AgentInvalid``: one cannot be read. ``TooLarge``.
    """
    found: dict[str, bytes] = {}
    seen, left = {_OWN, file.stem}, [*_imported(source)]
    size_bytes = 0
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        for path in _files(file.parent, name):
            content = _content(path)
            size_bytes += len(content)
            if size_bytes > MAX_BYTES:
                message = f"what {file.name} imports from beside it has more than {MAX_BYTES >> 20} MiB, with {path}"
                raise TooLarge(message, hint="Put data into the image, or a volume.", max_bytes=MAX_BYTES)
            found[path.relative_to(file.parent).as_posix()] = content
            if path.suffix == ".py":
                left += _imported(content.decode("utf-8", "replace"))
    return {path: base64.b64encode(found[path]).decode() for path in sorted(found)}


def _imported(source: str) -> Iterator[str]:
    """The first parts of all names that a text imports, wherever in it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # said of the agent's file elsewhere; another one may never be imported
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _files(folder: Path, name: str) -> list[Path]:
    """What ``import NAME`` finds in the folder, in Python's order. Of a folder that is no package by an
    ``__init__.py`` only what can be imported: it may be anything."""
    package, module = folder / name, folder / f"{name}.py"
    if (package / "__init__.py").is_file():
        return [path for path in sorted(package.rglob("*")) if path.is_file() and not _is_passing(path, package)]
    if module.is_file():
        return [module]
    return [path for path in sorted(package.rglob("*.py")) if path.is_file() and not _is_passing(path, package)]


def _is_passing(path: Path, package: Path) -> bool:
    """Made by Python or by tools, and made again: no part of it."""
    parts = path.relative_to(package).parts
    return any(part == "__pycache__" or part.startswith(".") for part in parts) or path.suffix == ".pyc"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AgentInvalid(f"{path} is imported, and cannot be read: {error.strerror}") from error
