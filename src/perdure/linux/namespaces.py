"""Namespaces of this process (namespaces(7))."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000  # <linux/sched.h>
_libc = ctypes.CDLL(None, use_errno=True)


def open_network() -> int:
    """A descriptor of the network namespace that this process is in, which leads there also when it has left."""
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def leave_network() -> None:
    """Into a new, empty network namespace, which all that is started from now on shares. It ends, with all that is in
    it, when the last process and descriptor in it has gone."""
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")


@contextmanager
def visiting(network: int, home: int) -> Iterator[None]:
    """Be in the network namespace of the first descriptor for a moment, then in that of the second one (setns(2)): for
    what the kernel shows of the namespace of who looks, as ``/proc/sys/net``. Of one thread."""
    _enter(network)
    try:
        yield
    finally:
        _enter(home)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns(CLONE_NEWNET)")
