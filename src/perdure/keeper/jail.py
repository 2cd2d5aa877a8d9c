"""The jail of one machine: what Firecracker sees of this kernel, and as whom it runs (docs/design/0013-isolation.md).

Firecracker's own jailer puts it there: a root folder of its own, a user and group of its own, no capability. What the
machine needs from outside is bound into that folder by the keeper, also once Firecracker runs in it: the folder is a
mount that is shared with the jailer's namespace.

BELOW/jail/                 empty; in the keeper's own mount namespace a file system of its own:
    stage                   where a mount gets its flags, before it is in the jail
    empty/                  the pager's root
    NAME/machine/root/      Firecracker's root, another file system: its program (NAME), devices, sockets, captures,
                            and bound files: drives, kernel, state, memory

Once a guest has run, that folder is its prisoner's: whatever is opened there may be a link, a pipe, or of any size.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat

from perdure.errors import MachineFailed
from perdure.linux import mounts, pids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from perdure.keeper.folder import Below
    from perdure.linux.process import Process

# Ids that nobody else gives out (systemd's "Users, Groups, UIDs and GIDs" ends below them), two for each machine.
FIRST_UID = 0x70000000
MACHINES_MAX = 1 << 16
_ID = "machine"
_ROOM_BYTES = 64 << 20  # in its folder, beside a capture of all its memory
_FILES_MAX = 1024
_COPY_BYTES = 1 << 20


class Jail:
    """Of one keeper. ``enter`` once, before anything else is started; ``open`` and ``close`` for each machine."""

    def __init__(self, below: Below) -> None:
        self.uid = self.pager_uid = -1  # also the ids of their groups; known after ``enter``
        self.root = ""  # the folder of the jail that is open
        self._below, self._base = below, below.jail
        self._uids = -1
        self._first: Process | None = None

    def enter(self) -> None:
        """Take ids, and give this process namespaces of its own for mounts and for its children's pids.

        Raises MachineFailed where this is not permitted.
        """
        self.uid = FIRST_UID + 2 * self._take_number()
        self.pager_uid = self.uid + 1
        try:
            mounts.own()
            mounts.tmpfs(self._base, "size=1m,mode=0700", mounts.INERT)
            os.close(os.open(f"{self._base}/stage", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.mkdir(self.empty)
            self._first = pids.own()
        except OSError as error:
            raise MachineFailed(
                f"no jail can be made for the machine: {error}",
                hint="Machines need the right to make mount and pid namespaces (CAP_SYS_ADMIN).",
            ) from None

    @property
    def empty(self) -> str:
        """A folder with nothing in it."""
        return f"{self._base}/empty"

    @property
    def pids(self) -> list[int]:
        """Of what holds the namespace of the children's pids."""
        return [self._first.pid] if self._first is not None else []

    def open(self, firecracker: str) -> None:
        """An empty folder for Firecracker, if there is none yet. Raises OSError."""
        if self.root:
            return
        root = f"{self._base}/{os.path.basename(firecracker)}/{_ID}/root"
        os.makedirs(root, mode=0o700, exist_ok=True)
        mounts.tmpfs(root, f"size={_ROOM_BYTES},nr_inodes={_FILES_MAX},mode=0700", mounts.NOSUID, shared=True)
        self.root = root

    def close(self) -> None:
        """Let go of the folder and all that is in it; Firecracker has ended."""
        if self.root:
            mounts.detach(self.root)
            self.root = ""

    def command(self, firecracker: str, arguments: list[str]) -> list[str]:
        """What starts Firecracker in the folder. The jailer is beside it, as in each of its releases."""
        jailer = f"{os.path.dirname(firecracker)}/jailer"
        ids = ["--uid", str(self.uid), "--gid", str(self.uid)]
        return [
            *(jailer, "--id", _ID, "--exec-file", firecracker, *ids, "--chroot-base-dir", self._base),
            *("--", *arguments),
        ]

    def make_room(self, memory_bytes: int) -> None:
        """For a capture of so much memory."""
        mounts.resize(self.root, memory_bytes + _ROOM_BYTES, mounts.NOSUID)

    def path(self, name: str) -> str:
        """Where a name in the folder is for the keeper."""
        return f"{self.root}/{name}"

    def lend(self, name: str, path: str) -> None:
        """Bind a file that many machines read: it can be read there, and nothing else."""
        mode = os.stat(path).st_mode
        if not mode & stat.S_IROTH:
            os.chmod(path, stat.S_IMODE(mode) | 0o444)  # what leads to it is root's alone
        self._bind(name, path, read_only=True)

    def give(self, name: str, path: str) -> None:
        """Bind a file that is this machine's own: it belongs to the jail's user from now on."""
        os.chown(path, self.uid, self.uid)
        self._bind(name, path, read_only=False)

    def copy(self, name: str, path: str) -> None:
        """A small file."""
        with open(path, "rb", buffering=0) as source:
            fd = self._create(name)
            try:
                while data := source.read(_COPY_BYTES):
                    while data:
                        data = data[os.write(fd, data) :]
            finally:
                os.close(fd)

    def make(self, name: str, size_bytes: int) -> None:
        """An empty file, which something may be bound over."""
        fd = self._create(name)
        try:
            os.ftruncate(fd, size_bytes)
        finally:
            os.close(fd)

    def listen(self, name: str, backlog: int) -> socket.socket:
        """A Unix socket in the folder that the jail's user may connect to."""
        path = self.path(name)
        remove(path)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(path)
            os.lchown(path, self.uid, self.uid)
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
        return listener

    def _bind(self, name: str, path: str, *, read_only: bool) -> None:
        target = self.path(name)
        if not os.path.lexists(target):
            self.make(name, 0)
        mounts.bind(path, target, f"{self._base}/stage", read_only=read_only)

    def _create(self, name: str) -> int:
        remove(self.path(name))
        fd = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.fchown(fd, self.uid, self.uid)
        return fd

    def _take_number(self) -> int:
        """One that no other keeper of this kernel has: a record lock, which goes with this process (fcntl(2)).

        The search begins at this process's pid, so that a number comes again only long after its last machine.
        """
        self._uids = os.open(
            f"{os.path.dirname(self._below.path)}/uids.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        for step in range(MACHINES_MAX):
            number = (os.getpid() + step) % MACHINES_MAX
            try:
                fcntl.lockf(self._uids, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
                return number
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
        raise MachineFailed(f"all {MACHINES_MAX} users for machines are taken", hint="Suspend or remove sandboxes.")


def remove(*paths: str) -> None:
    """Those that are there."""
    for path in paths:
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
