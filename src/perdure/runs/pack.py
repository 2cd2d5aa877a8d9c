"""What an agent brings along beside the text of its file: the modules that it imports from there, and the packages that
it requires, as wheels.

A pack is a blob of the log that names the blobs of its parts, so that a run which names the pack goes on with the same
bytes, whatever became of the folder that it was started from. It is written as a list of one item is
(docs/formats/context-log.md): sweeps, exports and verifications find its parts as they find those of a conversation.
The same parts give the same bytes, so its digest names its content.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from perdure.context.log import ContextLog
from perdure.errors import InvalidValue, ProtocolError, TooLarge
from perdure.formats.chain import canonical
from perdure.model import Frozen

MODULES_MAX = 2000
MODULES_MAX_BYTES = 16 << 20
PATH_MAX = 255


class Part(Frozen, frozen=True, kw_only=True):
    """One file: its path (of a module: beside the agent's file), and the blob that has it."""

    path: str
    digest: str


class Python(Frozen, frozen=True, kw_only=True):
    """Which one: wheels are of a version, a processor and a C library."""

    version: str  # 3.12.3
    machine: str  # x86_64
    libc: str  # glibc, musl
    libc_version: str

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])

    @property
    def said(self) -> str:
        return f"Python {self.minor} on {self.machine} ({self.libc} {self.libc_version})"

    def takes(self, other: Python) -> bool:
        """Whether it may use wheels that were chosen for the other one."""
        same = (self.minor, self.machine, self.libc) == (other.minor, other.machine, other.libc)
        return same and _numbers(self.libc_version) >= _numbers(other.libc_version)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


class Pack(Frozen, frozen=True, kw_only=True):
    """Parts are in the order of their paths; that of a wheel is its file's name. ``python``: whose wheels they are."""

    modules: list[Part] = msgspec.field(default_factory=list)
    wheels: list[Part] = msgspec.field(default_factory=list)
    python: Python | None = None

    def __bool__(self) -> bool:
        return bool(self.modules or self.wheels)

    def encoded(self) -> bytes:
        item: dict[str, Any] = {"modules": _told(self.modules)}
        if self.wheels:
            item |= {"wheels": _told(self.wheels), "python": msgspec.to_builtins(self.python)}
        return canonical({"item": item, "length": 1, "parent": None})


def _told(parts: list[Part]) -> list[Any]:
    return [{"path": part.path, "content": {"$blob": part.digest}} for part in parts]


def _parts(told: list[Any]) -> list[Part]:
    return [Part(path=one["path"], digest=one["content"]["$blob"]) for one in told]


def decoded(content: bytes) -> Pack:
    """ProtocolError: it is none."""
    try:
        item = msgspec.json.decode(content)["item"]
        python = msgspec.convert(item.get("python"), Python | None)
        return Pack(modules=_parts(item["modules"]), wheels=_parts(item.get("wheels", [])), python=python)
    except (msgspec.MsgspecError, KeyError, TypeError, IndexError) as error:
        raise ProtocolError(f"this is no pack of an agent: {error!r}") from error


async def read(context: ContextLog, digest: str | None) -> Pack:
    """The pack of a run; None: it has none. NotFound, ProtocolError."""
    return decoded(await context.get_blob(digest)) if digest else Pack()


async def keep_all(context: ContextLog, files: Mapping[str, bytes]) -> list[Part]:
    """Keep files in the log, by path."""
    return [Part(path=path, digest=await context.put_blob(content)) for path, content in sorted(files.items())]


async def contents(context: ContextLog, parts: list[Part]) -> dict[str, bytes]:
    return {part.path: await context.get_blob(part.digest) for part in parts}


def check_modules(modules: Mapping[str, bytes], file: str) -> None:
    """Raises InvalidValue naming what is no path beside the agent's ``file``, TooLarge."""
    for path in modules:
        parts = path.split("/")
        is_plain = path.isprintable() and len(path) <= PATH_MAX and "\\" not in path
        if not is_plain or not all(part not in ("", ".", "..") for part in parts) or path == file:
            hint = f'They are relative, as in "tools/search.py", and {file} itself is "source".'
            raise InvalidValue(f"modules: {path!r} is not the path of a file beside {file}", hint=hint)
    size_bytes = sum(map(len, modules.values()))
    if len(modules) > MODULES_MAX or size_bytes > MODULES_MAX_BYTES:
        message = f"what {file} imports from beside it is {len(modules)} files of {size_bytes} bytes in all"
        hint = f"At most {MODULES_MAX} files, {MODULES_MAX_BYTES >> 20} MiB: put data into the image, or a volume."
        raise TooLarge(message, hint=hint, size_bytes=size_bytes, max_bytes=MODULES_MAX_BYTES)
