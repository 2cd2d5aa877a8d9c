"""userfaultfd(2): having the page faults of this process answered by another one.

A thread that touches a missing page of a registered range sleeps; the descriptor reports its address to whoever holds
it (the pager: pager/memory.h has the facts about filling).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

API = 0xAA
IOC_API = 0xC018AA3F
IOC_REGISTER = 0xC020AA00
DEVICE_NEW = 0xAA00  # ioctl of /dev/userfaultfd
SYSCALL = {"x86_64": 323, "aarch64": 282}
REGISTER_MISSING = 1
FEATURE_EVENT_REMOVE = 1 << 3
PAGE = 4096

_API = struct.Struct("<QQQ")
_REGISTER = struct.Struct("<QQQQ")


def open_descriptor() -> int:
    """A new userfaultfd of this process. Raises OSError (PermissionError without the right to it)."""
    try:
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # before Linux 6.1, or not for us
        libc = ctypes.CDLL(None, use_errno=True)
        fd = int(libc.syscall(SYSCALL[os.uname().machine], os.O_CLOEXEC | os.O_NONBLOCK))
        if fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd is not permitted here") from None
        return fd
    try:
        return fcntl.ioctl(device, DEVICE_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(device)


def negotiate(fd: int, features: int = 0) -> None:
    """Agree on the API: the first thing to do with a new descriptor. Raises OSError."""
    fcntl.ioctl(fd, IOC_API, bytearray(_API.pack(API, features, 0)))


def register(fd: int, start: int, length: int) -> None:
    """Have missing pages of a range of this process reported. Raises OSError."""
    fcntl.ioctl(fd, IOC_REGISTER, bytearray(_REGISTER.pack(start, length, REGISTER_MISSING, 0)))
