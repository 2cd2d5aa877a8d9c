"""Child processes that cannot outlive their parent, watched by pidfd.

Below the dotted line ``subprocess`` is too slow to import, and it cannot set the parent-death signal without running
Python code after the fork anyway. Everything here is fork(2), prctl(2) and pidfd_open(2).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_THP_DISABLE = 41
_libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int) -> None:
    """Have the kernel send this process SIGKILL when the thread that forked it ends; ``parent`` is its pid.

    The parent may have died before prctl(2): then nothing would be sent any more, so look once after it. In a pid
    namespace in which the parent is not, its pid is always 0: there ``linux.pids`` sees to it.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() not in (parent, 0):
        os._exit(128 + signal.SIGKILL)


def live_on() -> None:
    """Take back what ``die_with`` asked for."""
    if _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def no_huge_pages() -> None:
    """Transparent huge pages are not for this process, nor for what it executes."""
    if _libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_THP_DISABLE)")


def no_new_privileges() -> None:
    """Neither this process nor what it executes ever gains a right by executing a file (no set-user-ID, no file
    capabilities)."""
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")


class Process:
    """A process and its pidfd, which polls readable once it has ended. Closes with ``close``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.status: int | None = None  # its exit status or -signal; 0 where it was not our child

    def poll(self) -> int | None:
        """Its exit status, or -n for signal n; None while it runs. Reaps it when it is our child."""
        if self.status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # not our child, so its status is not ours to know
                poller = select.poll()
                poller.register(self.pidfd, select.POLLIN)
                if poller.poll(0):
                    self.status = 0
            else:
                if pid:
                    self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def send(self, number: int) -> bool:
        """Send a signal. False: it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        if self.status is None:
            self.send(signal.SIGKILL)

    def wait(self) -> int:
        """Block until our child has ended; its status as ``poll`` gives it."""
        if self.status is None:
            _, status = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def fork(run: Callable[[], None], *, keep: Sequence[int] = (), die_with_parent: bool = True) -> Process:
    """Run a function in a forked child, which ends with it: status 0, or 1 after an exception (printed to stderr).

    SystemExit says another status, quietly.

    Of the parent's descriptors only 0, 1, 2 and ``keep`` stay open in the child.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return Process(pid)
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        if die_with_parent:
            die_with(parent)
        close_all_but({0, 1, 2, *keep})
        run()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def spawn(
    argv: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    output: int,
    keep: Sequence[int] = (),
    new_session: bool = False,
    huge_pages: bool = True,
    gains: bool = True,
) -> Process:
    """Execute a program that dies with this process: stdin is /dev/null, stdout and stderr are ``output``.

    ``gains``: whether it may ever gain rights by what it executes.

    It inherits the descriptors ``keep`` too, under their numbers, and those of ours that do not close on exec.
    Raises OSError when it cannot be executed: what failed in the child is reported here.
    """
    parent = os.getpid()
    failed, report = os.pipe()  # both close on exec: an empty pipe means that exec worked
    pid = os.fork()
    if pid == 0:
        try:
            die_with(parent)
            if new_session:
                os.setsid()
            if not huge_pages:
                no_huge_pages()
            if not gains:
                no_new_privileges()
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            for fd in keep:
                os.set_inheritable(fd, True)
            os.chdir(cwd)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execvpe(argv[0], list(argv), dict(env))
        except OSError as error:
            os.write(report, b"%d" % (error.errno or 0))
        finally:
            os._exit(127)
    os.close(report)
    process = Process(pid)
    number = os.read(failed, 16)
    os.close(failed)
    if number:
        process.wait()
        process.close()
        raise OSError(int(number), os.strerror(int(number)), argv[0])
    return process


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor of this process that is not in ``keep``."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                pass  # the one that listed the directory
