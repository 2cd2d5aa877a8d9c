"""A real PostgreSQL server in a temporary folder, which can be stopped, killed and started again."""

from __future__ import annotations

import asyncio
import itertools
import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

START_S = 60.0
UNUSED_S = 30.0  # what was closed is on its way out for a moment, longer on a machine that is busy
SESSIONS = """
SELECT pid, backend_type, application_name, state, wait_event, query, backend_start::text
FROM pg_stat_activity WHERE datname = %s
"""


def binaries() -> Path | None:
    """The folder with initdb and postgres, of the newest version; None: it is not installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    return folders[-1] if folders else None


class PostgresServer:
    """Reached at ``url``, on a Unix socket in ``folder``. Durable as by default: only what is slow and of no use to a
    test is off."""

    def __init__(self, folder: Path) -> None:
        self._bin = binaries() or Path()
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to be root
            names = {entry.pw_name: entry for entry in pwd.getpwall()}
            owner = names.get("postgres") or names["nobody"]
            self._user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        self._data = folder / "data"
        self.url = f"postgresql:///postgres?host={folder}&user=postgres"
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(f"listen_addresses = ''\nunix_socket_directories = '{folder}'\nshared_buffers = 32MB\n")

    @property
    def pid(self) -> int:
        """Of its first process, while it runs."""
        assert self._process is not None
        return self._process.pid

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._bin / program, *words], capture_output=True, text=True, cwd=self.folder, check=False, **self._user
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}{done.stdout}")

    def set(self, line: str) -> None:
        """A line of postgresql.conf, from the next start on."""
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(line + "\n")

    def start(self) -> None:
        with (self.folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", str(self._data)],
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
                **self._user,
            )
        deadline = time.monotonic() + START_S
        while subprocess.run([self._bin / "pg_isready", "-q", "-h", self.folder], check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text()[-4000:])
            time.sleep(0.02)

    def new_database(self) -> str:
        """The url of an empty one."""
        name = f"life_{next(self._numbers)}"
        words = ["-q", "-h", str(self.folder), "-U", "postgres", "-c", f"CREATE DATABASE {name}"]
        self._run("psql", *words, "postgres")
        return self.url.replace("///postgres?", f"///{name}?")

    async def until_unused(self, url: str) -> None:
        """Until nobody has a session in that database. AssertionError: who keeps one."""
        database = conninfo_to_dict(url)["dbname"]
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as shell:
            deadline = time.monotonic() + UNUSED_S
            while left := await (await shell.execute(SESSIONS, (database,))).fetchall():
                assert time.monotonic() < deadline, f"sessions of {database} are left: {left}"
                await asyncio.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: it ends its sessions and writes everything. SIGQUIT: as after a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        """As when its machine ends: it, and all processes of its sessions."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)  # so that it makes no more children
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            handles = []
            for child in map(int, children):
                with suppress(ProcessLookupError):
                    handles.append(os.pidfd_open(child))
            self._process.kill()
            self._process.wait()
            self._process = None
            for handle in handles:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], START_S)  # no next server starts while they hold its memory
                os.close(handle)
            (self._data / "postmaster.pid").unlink(missing_ok=True)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """One that runs. Its folder has a short name, for its socket, and is reached by the user that it is run as."""
    with tempfile.TemporaryDirectory(prefix="perdure-pg-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
