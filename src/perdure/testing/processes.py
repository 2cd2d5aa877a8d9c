"""Processes that are not our children."""

from __future__ import annotations

import os

from perdure.linux.readiness import readable


def ends(pid: int, timeout_s: float) -> bool:
    """Wait until it has ended, whether somebody has reaped it or not; False when it has not in time."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return readable(pidfd, timeout_s)
    finally:
        os.close(pidfd)
