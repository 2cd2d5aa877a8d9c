"""Packages of agents: chosen once, kept in the log as the wheels that they are, and unpacked where a run needs them.

``HOME/packs`` has nothing that is not in the log: it is emptied when the server starts, so what a server that was
killed left half unpacked is gone. Unpacked wheels lie in ``HOME/packs/DIGEST``, of the list of their digests, and are
shared by all workers that require the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import sys
import tarfile
import tempfile
import uuid
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path, PurePosixPath

from perdure.context.log import ContextLog
from perdure.context.values import BLOB_MAX_BYTES
from perdure.errors import AgentInvalid
from perdure.formats.chain import canonical
from perdure.formats.scriptblock import Needs
from perdure.host.paths import Home
from perdure.runs.pack import Part, Python
from perdure.runs.ports import Progress
from perdure.server import pips

PACKED_MAX_BYTES = BLOB_MAX_BYTES  # all wheels of an agent
UNPACKED_MAX_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
AT_ONCE = 2  # runs of pip
IDLE_MAX = 8  # unpacked packages that nobody uses just now


class Packages:
    """``runs.ports.Packages``. ``python_of``: asks an image which Python it has."""

    def __init__(self, home: Home, context: ContextLog, python_of: Callable[[str], Python]) -> None:
        self._folder = home.root / "packs"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._context = context
        self._python_of = python_of
        self._limit = asyncio.Semaphore(AT_ONCE)
        self._users: Counter[str] = Counter()
        self._unpacking: dict[str, asyncio.Lock] = {}  # by folder, the one that was used last at the end

    async def resolve(self, needs: Needs, image: str, progress: Progress) -> tuple[Python, list[Part]]:
        async with self._limit:
            python = None
            if image:
                progress(f"asking {image} for its Python", 0, 0)
                python = await asyncio.to_thread(self._python_of, image)
            with self._stage() as folder:
                limit = PACKED_MAX_BYTES
                found = await pips.download(needs, python, Path(folder), max_bytes=limit, progress=progress)
                await asyncio.to_thread(_check, found)
                parts = []
                for done, path in enumerate(found):
                    progress("keeping the packages", done, len(found))
                    content = await asyncio.to_thread(path.read_bytes)
                    parts.append(Part(path=path.name, digest=await self._context.put_blob(content)))
                progress("keeping the packages", len(found), len(found))
        return python or own(), parts

    def _stage(self) -> tempfile.TemporaryDirectory[str]:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return tempfile.TemporaryDirectory(dir=self._folder, prefix="new-")

    @asynccontextmanager
    async def unpacked(self, wheels: Sequence[Part]) -> AsyncIterator[Path]:
        """The folder of these packages, as long as it is needed."""
        path = await self.take(wheels)
        try:
            yield path
        finally:
            self.give_back(path)

    async def take(self, wheels: Sequence[Part]) -> Path:
        """The same, until it is given back. NotFound, ProtocolError: a wheel is gone from the log, or damaged."""
        name = hashlib.sha256(canonical([[part.path, part.digest] for part in wheels])).hexdigest()
        path, lock = self._folder / name, self._unpacking.pop(name, None) or asyncio.Lock()
        self._unpacking[name] = lock
        self._users[name] += 1
        try:
            async with lock:
                if not path.exists():
                    with self._stage() as folder:
                        for part in wheels:
                            content = await self._context.get_blob(part.digest)
                            await asyncio.to_thread(_unpack, part.path, content, Path(folder) / "packages")
                        (Path(folder) / "packages").rename(path)
        except BaseException:
            self._users[name] -= 1
            raise
        return path

    def give_back(self, path: Path) -> None:
        self._users[path.name] -= 1
        idle = [name for name in self._unpacking if not self._users[name]]
        for name in idle[: max(0, len(idle) - IDLE_MAX)]:
            del self._unpacking[name], self._users[name]
            gone = self._folder / f"new-{uuid.uuid4().hex}"  # at once, so that nobody finds a part of it
            with suppress(FileNotFoundError):  # it was not unpacked
                (self._folder / name).rename(gone)
            asyncio.get_running_loop().run_in_executor(None, shutil.rmtree, gone, True)


def own() -> Python:
    """That of this server, which workers run in."""
    version = ".".join(map(str, sys.version_info[:3]))
    libc, _, number = _libc().partition(" ")
    return Python(version=version, machine=os.uname().machine, libc=libc, libc_version=number)


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "musl 1.2"
    except ValueError:
        return "musl 1.2"


def _check(wheels: Sequence[Path]) -> None:
    """AgentInvalid, TooLarge: they cannot be unpacked as they are."""
    packed = sum(path.stat().st_size for path in wheels)
    if packed > PACKED_MAX_BYTES:
        raise pips.too_large(PACKED_MAX_BYTES)
    unpacked = 0
    for path in wheels:
        try:
            with zipfile.ZipFile(path) as wheel:
                unpacked += sum(one.file_size for one in wheel.infolist())
                for one in wheel.infolist():
                    _place(path.name, one.filename)
        except (zipfile.BadZipFile, OSError) as error:
            raise AgentInvalid(f"{path.name} is no wheel: {error}", hint="Ask those who keep the index.") from error
    if unpacked > UNPACKED_MAX_BYTES:
        raise pips.too_large(UNPACKED_MAX_BYTES)


def _place(wheel: str, name: str) -> PurePosixPath | None:
    """Where a file of a wheel belongs below a folder of packages (the wheel format's "Installing"); None: nowhere, as
    it is a script, a header or data for somewhere else."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise AgentInvalid(f"{wheel} has a file that leads elsewhere: {name!r}", hint="It is not installed.")
    if not path.parts[0].endswith(".data"):
        return path
    return PurePosixPath(*path.parts[2:]) if path.parts[1:2] in (("purelib",), ("platlib",)) else None


def _unpack(name: str, content: bytes, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        for one in wheel.infolist():
            place = _place(name, one.filename)
            if one.is_dir() or place is None:
                continue
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            with wheel.open(one) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
            if one.external_attr >> 16 & 0o111:
                target.chmod(0o755)


@contextmanager
def packed(folder: Path, place: str) -> Iterator[Iterator[bytes]]:
    """A folder as a tar stream that is unpacked in ``/``, to ``place``; what Python made in it since is left out."""

    def member(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return None if info.name.endswith("/__pycache__") else info

    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            tar.add(folder, place.lstrip("/"), filter=member)
        file.seek(0)
        yield iter(lambda: file.read(CHUNK_BYTES), b"")
