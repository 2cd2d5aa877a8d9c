"""Children that end with this process whatever they become: pid_namespaces(7).

A parent-death signal is not enough for them: the kernel forgets it when a process takes another user's id. All
processes of a pid namespace are killed by the kernel when its first one ends.
"""

from __future__ import annotations

import ctypes
import os
import signal

from perdure.linux import process

_CLONE_NEWPID = 0x20000000  # <linux/sched.h>
_libc = ctypes.CDLL(None, use_errno=True)


def own() -> process.Process:
    """Put the children that this process has from now on into a namespace of their own, with all that they start.

    Gives the first process of it, which does nothing: it waits for this process's end, or for its own kill. The others
    can only reach each other; this process knows them by pids of its own namespace, as ever. Raises OSError.
    """
    if _libc.unshare(_CLONE_NEWPID) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "a pid namespace")
    reading, _writing = os.pipe2(os.O_CLOEXEC)  # the writing end is this process's alone, and closes with it

    def wait() -> None:
        os.chdir("/")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans come to the first process: none is to stay a zombie
        os.read(reading, 1)

    try:
        return process.fork(wait, keep=(reading,))
    finally:
        os.close(reading)
