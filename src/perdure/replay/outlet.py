"""What a worker prints. While its function lives through its log once more that goes nowhere where it was told when it
was new, by the worker that lived through it first.
"""

from __future__ import annotations

import os
import sys


class Outlet:
    """stdout and stderr of this process; ``is_silent``: until ``open``."""

    def __init__(self, *, is_silent: bool = False) -> None:
        self._kept: int | None = None
        if is_silent:
            self._kept = os.dup(1)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for number in (1, 2):
                os.dup2(nowhere, number)
            os.close(nowhere)

    def open(self) -> None:
        """What is printed from now on is heard."""
        if self._kept is None:
            return
        self.flush()
        kept, self._kept = self._kept, None
        for number in (1, 2):
            os.dup2(kept, number)
        os.close(kept)

    def flush(self) -> None:
        """Before each call: a worker may end in it, and a line that is not whole yet would be lost."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass  # closed, or nobody reads it
