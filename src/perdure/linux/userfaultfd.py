"""userfaultfd(2): page faults of one process, answered by another. Light: the pager imports it.

A thread that touches a missing page of a registered range sleeps; the descriptor reports its address. UFFDIO_COPY
fills whole ranges and wakes who waits there. Facts to know (ioctl_userfaultfd(2), and the kernel's fs/userfaultfd.c):
- a range of which a part is present is filled up to that part: the answer is EAGAIN with the bytes done, and EEXIST
  when the very first page is present. Nobody is woken for pages that were present: UFFDIO_WAKE does it.
- EAGAIN with nothing done: the address space is changing (a REMOVE event waits to be read). Read events, try again;
  the kernel does not report the fault twice.
- ESRCH: the process is gone. ENOENT: the range is no longer registered.
- poll(2) works only on a descriptor with O_NONBLOCK.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

API = 0xAA
IOC_API = 0xC018AA3F
IOC_REGISTER = 0xC020AA00
IOC_WAKE = 0x8010AA02
IOC_COPY = 0xC028AA03
IOC_ZEROPAGE = 0xC020AA04
DEVICE_NEW = 0xAA00  # ioctl of /dev/userfaultfd
SYSCALL = {"x86_64": 323, "aarch64": 282}
REGISTER_MISSING = 1
FEATURE_EVENT_REMOVE = 1 << 3

EVENT_PAGEFAULT = 0x12
EVENT_REMOVE = 0x15
EVENT = struct.Struct("<B7xQQQ")  # kind, then: flags and address of a fault, or start and end of a removal
PAGE = 4096

_API = struct.Struct("<QQQ")
_RANGE = struct.Struct("<QQ")
_COPY = struct.Struct("<QQQQq")
_ZEROPAGE = struct.Struct("<QQQq")
_REGISTER = struct.Struct("<QQQQ")


class GoneError(Exception):
    """The process whose memory it was has ended."""


class BusyError(Exception):
    """The address space is changing: read events, then go on at ``done`` bytes."""

    def __init__(self, done: int) -> None:
        super().__init__(done)
        self.done = done


class Userfaultfd:
    """Fills the memory that a descriptor stands for. It owns the descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        os.set_blocking(fd, False)
        self._copy = bytearray(_COPY.size)
        self._zero = bytearray(_ZEROPAGE.size)

    def __enter__(self) -> Userfaultfd:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Whoever else holds the descriptor (Firecracker does) keeps the faults waiting; else they find zeros."""
        os.close(self.fd)

    def copy(self, target: int, source: int, length: int) -> None:
        """Fill [target, target + length) of the other process from our address ``source``; present pages stay.

        Raises GoneError, BusyError, OSError.
        """
        buffer = self._copy
        done = 0
        while done < length:
            _COPY.pack_into(buffer, 0, target + done, source + done, length - done, 0, 0)
            try:
                fcntl.ioctl(self.fd, IOC_COPY, buffer)
                return
            except OSError as error:
                done = self._advanced(error, target, done, int.from_bytes(buffer[32:], "little", signed=True))

    def zero(self, target: int, length: int) -> None:
        """Fill with zeros; present pages stay. Raises GoneError, BusyError, OSError."""
        buffer = self._zero
        done = 0
        while done < length:
            _ZEROPAGE.pack_into(buffer, 0, target + done, length - done, 0, 0)
            try:
                fcntl.ioctl(self.fd, IOC_ZEROPAGE, buffer)
                return
            except OSError as error:
                done = self._advanced(error, target, done, int.from_bytes(buffer[24:], "little", signed=True))

    def wake(self, target: int, length: int) -> None:
        """Let those go on who wait for a page in this range."""
        fcntl.ioctl(self.fd, IOC_WAKE, _RANGE.pack(target, length))

    def read(self) -> list[tuple[int, int, int, int]]:
        """What has happened: (kind, 0 or flags, address, …) of each event as ``EVENT`` has it. Empty: nothing."""
        try:
            return list(EVENT.iter_unpack(os.read(self.fd, 64 * EVENT.size)))
        except BlockingIOError:
            return []

    def _advanced(self, error: OSError, target: int, done: int, filled: int) -> int:
        """How far a fill that stopped has come; pages that were present are passed, and who waits there is woken."""
        if error.errno == errno.EAGAIN:
            if filled > 0:
                return done + filled
            raise BusyError(done) from None
        if error.errno == errno.EEXIST:
            self.wake(target + done, PAGE)
            return done + PAGE
        if error.errno == errno.ESRCH:
            raise GoneError from None
        raise error


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


class MappedFile:
    """A file's bytes at an address: what UFFDIO_COPY reads from, with no copy in between."""

    def __init__(self, path: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.size = os.fstat(fd).st_size
            address = libc.mmap(None, self.size, 1, 1, fd, 0)  # PROT_READ, MAP_SHARED
        finally:
            os.close(fd)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), f"cannot map {path}")
        self.address = int(address)
        self._libc = libc

    def close(self) -> None:
        self._libc.munmap(ctypes.c_void_p(self.address), ctypes.c_size_t(self.size))


def address_of(data: bytes) -> int:
    """Where the bytes are in our memory; valid while ``data`` lives."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
