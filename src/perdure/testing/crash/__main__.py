"""``python -m perdure.testing.crash`` (``make crash``): a server is killed at each of its durable writes.

Exit status 1 where anything did not hold afterwards. It writes build/crash.json, and after a whole matrix a section of
docs/crash-matrix.md for each database. What it is told by the environment:

    CRASH_POINTS      only points that begin so (step. run.suspended …)
    CRASH_DATABASE    only these (sqlite postgres)
    CRASH_RANDOM      kills at random instants on each database (200)
    CRASH_TIMES       of all writes of one name in a life, kill at so many (3: the first, a middle one, the last)
    CRASH_AT_ONCE     lives at once (as many as there are processors)
    CRASH_KEEP        1: keep the folders of lives in which something was wrong
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from perdure.testing.crash import page
from perdure.testing.crash.matrix import Asked, Matrix, ProgressLine
from perdure.testing.will import Will


def main() -> int:
    with Will() as will:
        matrix, line = Matrix(Asked.of(os.environ), will=will), ProgressLine()
        asyncio.run(matrix.run(line))
        line.end()
    build = Path("build")
    build.mkdir(exist_ok=True)
    (build / "crash.json").write_text(matrix.to_json())
    for database in matrix.asked.databases:
        table = matrix.table(database)
        if matrix.asked.is_whole:
            page.write(page.TITLES[database], table)
        print(table)
    for what in matrix.wrong:  # again, together
        print(f"WRONG: {what}")
    deaths = sum(len(outcome.deaths) for outcome in matrix.outcomes)
    print(f"{len(matrix.outcomes)} lives, {deaths} deaths, {len(matrix.wrong)} wrong")
    return 1 if matrix.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
