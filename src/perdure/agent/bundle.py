"""The SDK's files, as the host puts them into a guest."""

from __future__ import annotations

from pathlib import Path

_HOST_ONLY = {"bundle.py"}
_INTEGRATIONS = ("__init__.py", "pydantic_ai.py")  # those that make an agent's function durable, where it runs


def sdk_files() -> dict[str, bytes]:
    """Content by name (``perdure/agent/run.py`` …), relative to a folder that is put on PYTHONPATH. About 50 KB."""
    package = Path(__file__).parent.parent
    names = [package / "__init__.py", package / "errors.py"]
    names += [path for path in sorted((package / "agent").glob("*.py")) if path.name not in _HOST_ONLY]
    names += [package / "integrations" / name for name in _INTEGRATIONS]
    return {f"perdure/{path.relative_to(package)}": path.read_bytes() for path in names}
