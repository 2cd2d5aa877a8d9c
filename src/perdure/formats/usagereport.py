"""The short text in which a guest tells what its workload uses (docs/formats/channel.md, "Usage report")."""

from __future__ import annotations

import re
from dataclasses import dataclass

_REPORT = re.compile(r"usage 1((?: \d{1,19}){7})", re.ASCII)


@dataclass(frozen=True)
class GuestUsage:
    """As the guest's kernel counts it; bytes of network and disks since it booted."""

    total_kib: int
    available_kib: int
    threads: int
    received_bytes: int
    sent_bytes: int
    read_bytes: int
    written_bytes: int

    @property
    def used_bytes(self) -> int:
        return max(0, self.total_kib - self.available_kib) << 10


def parse(text: str) -> GuestUsage | None:
    """None for anything that is not a report of a version that this program knows: it only informs."""
    found = _REPORT.fullmatch(text)
    return GuestUsage(*map(int, found[1].split())) if found else None
