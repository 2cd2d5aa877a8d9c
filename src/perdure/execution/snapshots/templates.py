from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...formats.manifest import Facts


@dataclass(frozen=True)
class Template:
    """A booted, idle machine with no image attached; every sandbox starts from one (File backend, drives swapped)."""

    name: str  # of its folder under home.templates
    state: Path
    memory: Path  # sparse raw file
    size: int  # bytes of guest memory
    digest: str  # of its content: what first layers are a difference to
    facts: Facts


async def ensure(home: Any, assets: Any, launcher: Any, *, vcpus: int, memory_mib: int, progress: Any = None) -> Template: ...
