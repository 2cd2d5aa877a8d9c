"""What processes have taken of processors and memory (proc_pid_stat(5)). Light: it is read below the line."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def usage(pids: Sequence[int]) -> dict[str, Any]:
    """Of all of them together: seconds of processor time, bytes of memory that is theirs (shared pages too). What has
    ended counts nothing."""
    ticks = pages = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            pages += int(fields[21])
        except (OSError, IndexError, ValueError):
            continue
    return {"cpu_s": ticks / os.sysconf("SC_CLK_TCK"), "memory_bytes": pages * os.sysconf("SC_PAGE_SIZE")}
