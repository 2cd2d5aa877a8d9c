"""A wish for a checkpoint: of a person, or of the program itself; also for one that forks go on from."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.errors import PerdureError
from perdure.model import SnapshotInfo


class Wish:
    """``keep``: its snapshot is not given up for newer ones. ``key``, ``request``: of the program's call, where it is
    the program's. ``forks``: the ids of those that are to go on from it."""

    def __init__(self, *, keep: bool = False, key: str = "", request: str = "", forks: Sequence[str] = ()) -> None:
        self.keep = keep
        self.key = key
        self.request = request
        self.forks = list(forks)
        self.snapshot: SnapshotInfo | None = None
        self.error: PerdureError | None = None

    @property
    def is_over(self) -> bool:
        return self.snapshot is not None or self.error is not None

    def result(self) -> SnapshotInfo:
        """The snapshot; raises what was in its way."""
        if self.error is not None:
            raise self.error
        assert self.snapshot is not None
        return self.snapshot
