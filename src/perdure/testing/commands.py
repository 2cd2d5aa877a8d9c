"""Command lines as their users run them: in another process, with a home of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

from perdure.host.paths import Home

DEADLINE_S = 60.0


@dataclass(frozen=True)
class Fcrun:
    """``fcrun`` with this home. ``words`` come first in each of its command lines."""

    home: Home
    words: tuple[str, ...] = ()

    def __call__(self, *argv: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """Its exit status, and what it wrote to standard output and to standard error."""
        done = subprocess.run(
            [sys.executable, "-m", "perdure.cli.fcrun", *self.words, *argv],
            env={**os.environ, "PERDURE_HOME": str(self.home.root), "PERDURE_CACHE": str(self.home.cache)},
            input=stdin,
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def said(self, *argv: str) -> str:
        """What it wrote where it succeeds, and complains of nothing."""
        status, out, err = self(*argv)
        assert (status, err) == (0, "")
        return out
