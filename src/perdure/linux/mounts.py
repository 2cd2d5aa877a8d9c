"""Mounts in a namespace of this process's own: mount_namespaces(7), mount(2).

What is mounted in one is seen by nobody outside, and is gone when the last process in it has ended, however it ended.
"""

from __future__ import annotations

import ctypes
import os

_CLONE_NEWNS = 0x00020000  # <linux/sched.h>
NOSUID, NODEV, NOEXEC = 2, 4, 8  # <linux/mount.h>
_RDONLY, _REMOUNT, _BIND, _MOVE, _REC = 1, 32, 4096, 8192, 16384
_SLAVE, _SHARED = 1 << 19, 1 << 20
_MNT_DETACH = 2
INERT = NOSUID | NODEV | NOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


def own() -> None:
    """Give this process mounts of its own. Those that the machine makes later still arrive here; none goes back.

    Raises OSError: not permitted, as in a container without CAP_SYS_ADMIN.
    """
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "a mount namespace")
    _mount(None, "/", None, _REC | _SLAVE)


def tmpfs(path: str, options: str, flags: int, *, shared: bool = False) -> None:
    """An empty file system in memory. ``shared``: what is mounted in it later appears in copies of this namespace too,
    where they hold it as a slave (mount_namespaces(7), "SHARED SUBTREES")."""
    _mount("perdure", path, "tmpfs", flags, options)
    if shared:
        _mount(None, path, None, _SHARED)


def resize(path: str, size_bytes: int, flags: int) -> None:
    """Another limit for a ``tmpfs``."""
    _mount("perdure", path, "tmpfs", flags | _REMOUNT, f"size={size_bytes}")


def bind(source: str, target: str, stage: str, *, read_only: bool) -> None:
    """Let a file be seen at another path, where a file is. Nothing there is executed or a device.

    ``stage``: a file on a mount that is not shared. There the flags are set, for they do not follow a mount into the
    namespaces that have received it. The last component of ``target`` is not followed, if it is a link.
    """
    held = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _mount(source, stage, None, _BIND)
        try:
            _mount(None, stage, None, _REMOUNT | _BIND | INERT | (_RDONLY if read_only else 0))
            _mount(stage, f"/proc/self/fd/{held}", None, _MOVE)
        except OSError:
            detach(stage)
            raise
    finally:
        os.close(held)


def detach(path: str) -> None:
    """Take a mount out of this namespace and of those that have received it; who uses it keeps it until the end."""
    if _libc.umount2(os.fsencode(path), _MNT_DETACH) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, options or None)]
    if _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)
