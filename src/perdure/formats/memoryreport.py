"""The short text in which a guest tells who has its memory (docs/formats/channel.md, "Memory report")."""

from __future__ import annotations

import re

from perdure.model import MemoryUse, ProcessMemory

_HEAD = re.compile(r"memory 1((?: \d{1,15}){6})", re.ASCII)
_PROCESS = re.compile(r"(\d{1,10}) (\d{1,15}) ([!-~]{1,15})", re.ASCII)


def parse(text: str) -> MemoryUse | None:
    """None for anything that is not a report of a version that this program knows: it only informs."""
    head, *lines = text.split("\n")
    found = _HEAD.fullmatch(head)
    rows = [_PROCESS.fullmatch(line) for line in lines]
    if found is None or None in rows:
        return None
    total, free, cache, shared, anonymous, kernel = map(int, found[1].split())
    return MemoryUse(
        total_kib=total,
        free_kib=free,
        page_cache_kib=cache,
        shared_kib=shared,
        anonymous_kib=anonymous,
        kernel_kib=kernel,
        processes=[
            ProcessMemory(pid=int(row[1]), name=row[3], anonymous_kib=int(row[2])) for row in rows if row is not None
        ],
    )
