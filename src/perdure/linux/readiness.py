"""Waiting for one descriptor, whatever its number: select(2) takes none above 1023."""

from __future__ import annotations

import select


def readable(descriptor: int, timeout_s: float) -> bool:
    """Whether it can be read, has ended (a pidfd), or was hung up, within that time."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(max(0.0, timeout_s) * 1000))
