"""What lies below the line: one folder per machine, the record of its end, templates shared by all machines.

BELOW/                    mode 0700, on tmpfs
    launcher.lock         held by the launcher that lives
    jail/                 empty; each keeper has a file system of its own there (``keeper.jail``)
    m/SANDBOX/            the keeper's working directory (its content: docs/design/0001-contracts.md, 3)
        keeper.sock       the keeper's control socket: it listens there as long as it lives
        exit.json         {"cause", "detail", "time"}: the machine ended, and nobody has read it yet
    spares/NAME/          the same for a keeper that was started ahead and is nobody's yet
    templates/NAME        raw memory of a template, mapped by every machine made from it
"""

from __future__ import annotations

import fcntl
import json
import os
import time

from perdure.errors import InvalidValue, MachineFailed
from perdure.linux import sparse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAME_MAX = 64
_TEMPLATES_MAX = 16  # copies in tmpfs, some 40 MB each; they are made again when they are wanted


def checked_name(value: object, what: str) -> str:
    """A name that is safe as one component of a path. Raises InvalidValue."""
    if isinstance(value, str) and 0 < len(value) <= _NAME_MAX and value.isascii() and value[0].isalnum():
        rest = value.replace("-", "").replace("_", "").replace(".", "")
        if rest.isalnum():
            return value
    raise InvalidValue(f"{what} must be 1 to {_NAME_MAX} letters, digits, '-', '_' and '.', it is {value!r}")


class Below:
    """The below-line folder of one home."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.machines = f"{path}/m"
        self.spares = f"{path}/spares"
        self.templates = f"{path}/templates"
        self.jail = f"{path}/jail"

    def make(self) -> None:
        for folder in (self.path, self.machines, self.spares, self.templates, self.jail):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        os.chmod(self.path, 0o700)

    def machine(self, sandbox: str) -> MachineFolder:
        return MachineFolder(f"{self.machines}/{sandbox}")

    def spare(self, name: str) -> MachineFolder:
        return MachineFolder(f"{self.spares}/{name}")

    def clear_spares(self) -> None:
        """Remove what the spares of a launcher that died left: they died with it."""
        for name in os.listdir(self.spares):
            self.spare(name).remove()

    def sandboxes(self) -> list[str]:
        """All that have a machine folder, sorted."""
        return sorted(os.listdir(self.machines))

    def materialize(self, name: str, source: str) -> str:
        """The path of a copy of a template's sparse memory file in this tmpfs; made once, shared by all machines.

        Size and time of the source are kept in the copy: when they differ, it is made anew beside the old one, which
        running machines keep. Raises MachineFailed, OSError.
        """
        target = f"{self.templates}/{checked_name(name, 'the name of a template')}"
        lock = os.open(f"{self.templates}/.{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                wanted = os.stat(source)
            except OSError as error:
                raise MachineFailed(f"the template's memory {source} cannot be read: {error.strerror}") from None
            try:
                present = os.stat(target)
            except FileNotFoundError:
                present = None
            if present is None or (present.st_size, present.st_mtime_ns) != (wanted.st_size, wanted.st_mtime_ns):
                _copy_whole(source, target, wanted.st_mtime_ns)
                self._drop_old_templates()
            os.utime(target, ns=(time.time_ns(), wanted.st_mtime_ns))
        finally:
            os.close(lock)
        return target

    def _drop_old_templates(self) -> None:
        """Let go of those that were used least lately; machines that map one keep it until they end."""
        held = [entry for entry in os.scandir(self.templates) if not entry.name.startswith(".")]
        for entry in sorted(held, key=lambda entry: entry.stat().st_atime_ns)[:-_TEMPLATES_MAX]:
            os.unlink(entry.path)


class MachineFolder:
    """The folder of one machine. Nothing in it is ever followed out of it when it is removed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.control = f"{path}/keeper.sock"
        self._exit = f"{path}/exit.json"

    def make(self) -> None:
        """An empty folder, mode 0700: what an earlier machine left is removed."""
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        self.clear()

    def clear(self, *, keep_record: bool = False, keep_control: bool = False) -> None:
        """Remove everything in it, but on request the record and the control socket."""
        kept = ([self._exit] if keep_record else []) + ([self.control] if keep_control else [])
        _remove_below(self.path, kept)

    def become(self, other: MachineFolder) -> None:
        """Take the name of another folder, of which nothing stays. Whose working directory this is stays in it."""
        other.remove()
        os.rename(self.path, other.path)

    def remove(self) -> None:
        self.clear()
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            pass

    def record_exit(self, cause: str, detail: str) -> dict[str, Any]:
        """Write down why the machine ended; what was written."""
        record = {"cause": cause, "detail": detail, "time": time.time()}
        with open(f"{self._exit}.new", "w", encoding="utf-8") as file:
            json.dump(record, file)
        os.replace(f"{self._exit}.new", self._exit)
        return record

    def read_exit(self) -> dict[str, Any] | None:
        try:
            with open(self._exit, encoding="utf-8") as file:
                record = json.load(file)
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None


def _copy_whole(source: str, target: str, mtime_ns: int) -> None:
    reading = sparse.open_direct(source)
    fresh = f"{target}.new"
    try:
        writing = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for _ in sparse.copy(reading, writing):
                pass
            os.utime(writing, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(writing)
        os.replace(fresh, target)
    except BaseException:
        if os.path.exists(fresh):
            os.unlink(fresh)
        raise
    finally:
        os.close(reading)


def _remove_below(path: str, kept: list[str]) -> None:
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.path in kept:
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                _remove_below(entry.path, kept)
                os.rmdir(entry.path)
            else:
                os.unlink(entry.path)
        except FileNotFoundError:
            pass
