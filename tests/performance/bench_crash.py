"""A server killed at each of its durable writes, on both databases, and at random: how much was wrong afterwards.

``make crash`` is the whole of it (docs/testing.md). This is the same program with one death for each name of a write,
just before its commit and just after it, and fewer at random; CRASH_* of the environment make it what it is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from report import Report

FEWER = {"CRASH_TIMES": "1", "CRASH_RANDOM": "20"}


def add(report: Report) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "docs").mkdir()
        command = [sys.executable, "-m", "perdure.testing.crash"]
        ran = subprocess.run(command, cwd=folder, env={**FEWER, **os.environ}, stdout=subprocess.PIPE, check=False)
        kept = folder / "build" / "crash.json"
        if not kept.exists():
            raise RuntimeError(f"perdure.testing.crash ended with {ran.returncode}: {ran.stdout[-2000:]!r}")
        found = json.loads(kept.read_text())
    for problem in found["wrong"]:
        print(f"WRONG: {problem}", file=sys.stderr)
    lives = found["lives"]
    report.add("deaths of a server: lives that it was killed in", sum(life["deaths"] > 0 for life in lives), "")
    report.add("deaths of a server: deaths", sum(life["deaths"] for life in lives), "")
    report.add("deaths of a server: what was wrong afterwards", len(found["wrong"]), "", goal="value <= 0")


if __name__ == "__main__":
    add(Report())
