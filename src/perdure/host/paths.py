"""Where things live: one state folder (the *home*) per node, one cache of assets per machine.

    HOME/                       PERDURE_HOME; /var/lib/perdure for root, ~/.local/share/perdure otherwise
        run/                    sockets, pid files, locks, daemon logs
        host/                   the emulated host: its pids, logs and launcher address
        images/ templates/ store/ sandboxes/ networks/ perdure.db
        acknowledged            the last entry that the server wrote (``context.mark``)
        workers/                one folder per run of the replay road whose worker lives, or sleeps
        headroom                for the small files of what frees room (``headroom``)
        frames/                 of layers that are beyond this machine: a cache, which may be deleted
    CACHE/                      PERDURE_CACHE; /var/cache/perdure or ~/.cache/perdure: assets, by digest

Everything below the dotted line (keepers, Firecracker) sees HOME at the same absolute path, also inside the
emulated host, where it is a shared folder. What lives only in that kernel's memory is under ``below_line_folder``.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import NoRights, NoSpace

UNIX_PATH_MAX = 107  # bytes that fit in sockaddr_un.sun_path with its final NUL (unix(7))


@dataclass(frozen=True)
class Home:
    """The folders of one node. Nothing is made until ``make`` is called."""

    root: Path
    cache: Path

    @staticmethod
    def find(environ: dict[str, str] | None = None) -> Home:
        """The home that the environment names, or the default of this user."""
        env = dict(os.environ) if environ is None else environ
        is_root = os.geteuid() == 0
        user = Path(env.get("HOME", "/"))
        home = env.get("PERDURE_HOME") or ("/var/lib/perdure" if is_root else str(user / ".local/share/perdure"))
        cache = env.get("PERDURE_CACHE") or ("/var/cache/perdure" if is_root else str(user / ".cache/perdure"))
        return Home(Path(home).absolute(), Path(cache).absolute())

    def make(self) -> Home:
        """Make the folders that daemons write to (mode 0700: they hold memory images). NoRights, NoSpace."""
        written = (self.run, self.host, self.images, self.templates, self.store, self.sandboxes, self.volumes)
        try:
            for folder in (self.root, *written):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else NoRights
            hint = "PERDURE_HOME names the state folder, PERDURE_CACHE the one of what is downloaded."
            raise kind(f"the folder {error.filename} cannot be made: {error.strerror}", hint=hint) from error
        return self

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def host(self) -> Path:
        return self.root / "host"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def templates(self) -> Path:
        return self.root / "templates"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def frames(self) -> Path:
        return self.root / "frames"

    @property
    def networks(self) -> Path:
        return self.root / "networks"

    @property
    def sandboxes(self) -> Path:
        return self.root / "sandboxes"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def database(self) -> Path:
        return self.root / "perdure.db"

    @property
    def tag(self) -> str:
        """Eight hex digits that tell this home from others on the machine."""
        import hashlib  # no command line that only asks needs it

        return hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]

    @property
    def below_line_folder(self) -> Path:
        """A tmpfs folder in the kernel that runs the VMs: machine folders, sockets, materialized templates."""
        return Path("/run/perdure") / self.tag

    def socket(self, name: str) -> Path:
        """The path of a Unix socket ``NAME.sock``: in ``run/``, or under /tmp where that path would be too long."""
        path = self.run / f"{name}.sock"
        if len(os.fsencode(path)) <= UNIX_PATH_MAX:
            return path
        return Path(f"/tmp/perdure-{os.geteuid()}-{self.tag}-{name}.sock")
