"""Templates: booted, idle machines with no image attached, from which every sandbox starts.

    TEMPLATES/NAME/template.json     what it was made from, and the digest of its content
                   state             Firecracker's device state
                   memory            the guest's memory: raw, sparse, blocks of zeros are holes
                   map               which blocks are not zeros (docs/formats/layer.md, a flat map)
                   working-set       which blocks machines that began here touch first after a restore (may be lost)
                   overlay           the disk that is mounted in it: sparse; only where an image is attached

NAME is a digest of everything that the content depends on: another kernel, guestd, Firecracker, CPU, shape or image is
another template. The old one stays: snapshots may lie over it. ``warming`` makes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from perdure.errors import (
    InvalidValue,
    MachineFailed,
    NotFound,
    SnapshotInvalid,
)
from perdure.execution.snapshots.collected import opened
from perdure.execution.snapshots.diskspace import space_checked
from perdure.formats import blockmap, workingset
from perdure.formats.blockmap import BASE, BLOCK, LAYER, MEMORY, NO_BASE, ROLE_FLAT, Run
from perdure.formats.manifest import Facts
from perdure.linux import durable, sparse

VERSION = 1
_STEP = 256  # blocks read at a time


@dataclass(frozen=True)
class Template:
    """A template on this node. Start from it with the keeper's ``restore`` of a raw file and ``swap``."""

    name: str  # of its folder
    state: Path
    memory: Path  # sparse raw file
    size: int  # bytes of guest memory
    digest: str  # 64 hex digits, of its content: what the lowest memory layers are a difference to
    facts: Facts
    overlay: Path | None = None  # with an image attached: each sandbox starts with a copy of this disk

    def keep_working_set(self, blocks: Iterable[int]) -> None:
        """Remember what a machine that began here touched first after a restore: a hint for others' first restore."""
        path = self.state.with_name("working-set")
        fresh = path.with_name(f"working-set.{secrets.token_hex(4)}")
        try:
            fresh.write_bytes(workingset.encode(blocks))
            fresh.replace(path)
        except OSError:
            fresh.unlink(missing_ok=True)  # a full disk, say; then it is learned another time

    def working_set(self) -> list[int]:
        """What was kept; empty when there is none."""
        try:
            return workingset.decode(self.state.with_name("working-set").read_bytes())
        except FileNotFoundError:
            return []

    def runs(self) -> list[Run]:
        """Which blocks are not zeros. Raises SnapshotInvalid."""
        held = blockmap.decode(self.memory.with_name("map").read_bytes())
        if (held.kind, held.role, held.blocks, held.layers) != (MEMORY, ROLE_FLAT, self.size // BLOCK, 0):
            raise SnapshotInvalid(f"the map of template {self.name} is the map of something else")
        return held.runs


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """``template.json``."""

    version: int
    digest: str
    facts: Facts
    image: str = ""  # digest of the image that is attached,
    overlay: str = ""  # and of the disk that is mounted in it, which a template from another machine does not have


_seen: dict[Path, tuple[object, ...]] = {}  # templates whose content was hashed, and what their files were then


def load(folder: Path, name: str, digest: str = "") -> Template:
    """The template NAME in ``home.templates``; its content is hashed when it is new or has changed.

    ``digest``: the content that is meant. Machines that boot the same parts make templates of one name and different
    contents, and one that came from another machine is in a folder of its own (``adopted_name``).
    Raises NotFound, SnapshotInvalid.
    """
    if digest:
        for each in _names(name, digest):
            try:
                if _digest_in(folder / each) == digest:
                    return load(folder, each)
            except SnapshotInvalid:
                pass  # that one is damaged: perhaps another one is not
    place = folder / name
    try:
        record = msgspec.json.decode((place / "template.json").read_bytes(), type=_Record)
        overlay = place / "overlay" if record.overlay and (place / "overlay").exists() else None
        parts = [place / "state", place / "memory", place / "map", *([overlay] if overlay else [])]
        files = [part.stat() for part in parts]
    except FileNotFoundError:
        raise NotFound(
            f"template {name} is not in {folder}", hint="Snapshots over it need the machine that they were made on."
        ) from None
    except msgspec.MsgspecError as error:
        raise SnapshotInvalid(f"{place / 'template.json'} does not read: {error}") from None
    if record.version != VERSION:
        raise SnapshotInvalid(f"template {name} has format version {record.version}, not {VERSION}")
    size = record.facts.memory_mib << 20
    template = Template(name, place / "state", place / "memory", size, record.digest, record.facts, overlay)
    signature = (record.digest, *((file.st_ino, file.st_size, file.st_mtime_ns) for file in files))
    if _seen.get(place) != signature:
        if (
            files[1].st_size != size
            or _content_digest(place, template.runs()) != record.digest
            or (overlay is not None and _disk_digest(overlay) != record.overlay)
        ):
            raise SnapshotInvalid(
                f"template {name} does not have the content that it was made with: it was damaged or changed"
            )
        _seen[place] = signature
    return template


def adopted_name(name: str, digest: str) -> str:
    """The name of a template that was made on another machine, so that it is never taken for one made here."""
    return f"{name.partition('-')[0]}-{digest[:16]}"


def _names(name: str, digest: str) -> list[str]:
    return [name, name.partition("-")[0], adopted_name(name, digest)]


def _digest_in(place: Path) -> str:
    try:
        return msgspec.json.decode((place / "template.json").read_bytes(), type=_Record).digest
    except (OSError, msgspec.MsgspecError):
        return ""


def described(folder: Path, name: str) -> tuple[str, Facts, str]:
    """(digest, what it was made with, image that is attached or "") of a template, its content not looked at.

    Raises NotFound, SnapshotInvalid.
    """
    path = folder / name / "template.json"
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
        return record.digest, record.facts, record.image
    except FileNotFoundError:
        raise NotFound(f"template {name} is not in {folder}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SnapshotInvalid(f"{path} does not read: {error}") from None


def seal(captured: Path, target: Path, facts: Facts, image: str = "", base: Template | None = None) -> None:
    """Make a template of the folder that ``state`` and ``memory`` (a capture file) were collected into; used up.

    ``base``: what the machine started from, and the memory is a difference to; without one it is the whole memory.

    A file ``overlay`` in it is the disk that is mounted in it, with the image of digest ``image``. The template is
    durable and complete, or not there. Raises NoSpace, MachineFailed (memory of another size).
    """
    # A folder that nobody has looked into: the kernel below the line remembers for a while which file a name was.
    fresh = target.with_name(f"{target.name}.{secrets.token_hex(4)}.new")
    with space_checked(str(target)):
        fresh.mkdir(mode=0o700)
        try:
            runs = _lay_over(base, captured / "memory", fresh / "memory", facts.memory_mib << 20)
            (captured / "memory").unlink()
            for part in (captured / "state", *captured.glob("overlay")):
                part.rename(fresh / part.name)
            blocks = (facts.memory_mib << 20) // BLOCK
            held = blockmap.encode(runs, kind=MEMORY, role=ROLE_FLAT, blocks=blocks, layers=0)
            (fresh / "map").write_bytes(held)
            record = _Record(
                version=VERSION,
                digest=_content_digest(fresh, runs),
                facts=facts,
                image=image,
                overlay=_disk_digest(fresh / "overlay") if image else "",
            )
            (fresh / "template.json").write_bytes(msgspec.json.encode(record))
            for path in (*fresh.iterdir(), fresh):
                durable.sync(path)
            fresh.rename(target)
            durable.sync(target.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _lay_over(base: Template | None, difference: Path, target: Path, size: int) -> list[Run]:
    """Write the whole memory, blocks of zeros as holes; the runs of the others."""
    try:
        captured = opened(difference, size // BLOCK)
    except (SnapshotInvalid, InvalidValue) as error:
        raise MachineFailed(f"what was captured for a template is not whole: {error.message}") from None
    if base is None and sum(run.length for run in captured.runs) != captured.blocks:
        raise MachineFailed("what was captured for a template is not all of its memory")
    if captured.base not in (NO_BASE, bytes.fromhex(base.digest) if base else NO_BASE):
        raise MachineFailed(f"the memory for a template was captured over template {captured.base.hex()}")
    runs = blockmap.laid_over(base.runs() if base else [], captured.runs)
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(target.open("xb", buffering=0)).fileno()
        old = stack.enter_context(base.memory.open("rb", buffering=0)).fileno() if base else -1
        os.ftruncate(new, size)
        for run in runs:
            for part in run.steps(_STEP):
                own = part.source == LAYER
                data = captured.content(part) if own else os.pread(old, part.length * BLOCK, part.first * BLOCK)
                _write(new, data, part.first * BLOCK)
    return blockmap.joined(Run(run.first, run.length, BASE, run.first) for run in runs)


def _write(file: int, data: bytes | memoryview, place: int) -> None:
    while data:
        written = os.pwrite(file, data, place)
        data, place = data[written:], place + written


def _content_digest(folder: Path, runs: list[Run]) -> str:
    found = hashlib.sha256((folder / "state").read_bytes())
    found.update((folder / "map").read_bytes())
    with (folder / "memory").open("rb", buffering=0) as file:
        for run in runs:
            for first in range(run.first, run.first + run.length, _STEP):
                count = min(_STEP, run.first + run.length - first)
                found.update(os.pread(file.fileno(), count * BLOCK, first * BLOCK))
    return found.hexdigest()


def _disk_digest(path: Path) -> str:
    """Of a sparse file's data and where it is."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for at, length in sparse.extents(file.fileno()):
            found.update(at.to_bytes(8, "little"))
            for start in range(at, at + length, _STEP * BLOCK):
                found.update(os.pread(file.fileno(), min(_STEP * BLOCK, at + length - start), start))
    return found.hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
