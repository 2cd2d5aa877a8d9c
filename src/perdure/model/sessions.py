"""Sessions: logs of programs that are no runs."""

from __future__ import annotations

from typing import Any

from perdure.model.values import Frozen


class SessionInfo(Frozen, frozen=True, kw_only=True):
    """A session as the API shows it (``context.sessions``)."""

    id: str  # of its log; a session that takes its name later has another one
    name: str
    created: float
    seq: int = 0  # of its last entry
    version: int = 1  # of its value
    tags: dict[str, str] = {}
    value: Any = None  # its program's; replaced whole
    origin: dict[str, Any] | None = None  # the session and seq that it was forked at
