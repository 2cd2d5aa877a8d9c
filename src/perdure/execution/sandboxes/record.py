"""What is kept of a sandbox on disk: ``sandboxes/ID/``.

sandbox.json    the record, replaced whole and synced before what it says is acted on
log             what the main process wrote (formats.logs)
archives/N      tars that were put in before the start: PATH.tar in the order of their numbers
machine-N/      the files of machine number N: ``overlay`` (its disk), ``state`` and ``memory.map`` (of a restore)
capture-HEX/    what Firecracker wrote for a suspend or checkpoint, until it is packed
disk            the disk of a suspended one as it is, so that it goes on at once (may be deleted: ``keptdisks``)
disk-index      what its disk held at its newest snapshot (may be lost: ``diskchanges``)
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

import msgspec

from perdure.errors import ProtocolError
from perdure.execution.snapshots.diskspace import space_checked
from perdure.formats.manifest import Origin
from perdure.linux import durable
from perdure.model import (
    CallsEndpoint,
    Frozen,
    HeldSnapshot,
    PublishedPort,
    Recipe,
    SandboxSpec,
    SandboxState,
    SnapshotInfo,
)

VERSION = 1


class KeptSnapshot(Frozen, frozen=True, kw_only=True):
    """A snapshot of a sandbox, and how much of the main process's output was in the log when it was made."""

    info: SnapshotInfo
    stdout: int = 0
    stderr: int = 0
    started: float | None = None
    formerly: list[str] = msgspec.field(default_factory=list)  # digests that it had before it was compacted
    volumes: dict[str, list[int]] = msgspec.field(default_factory=dict)  # what they were known by then

    @property
    def held(self) -> HeldSnapshot:
        return HeldSnapshot(digests=[self.info.digest, *self.formerly], position=self.info.position)

    @classmethod
    def of(cls, info: SnapshotInfo, origin: Origin | None) -> KeptSnapshot:
        if origin is None:
            return cls(info=info)
        return cls(
            info=info,
            stdout=origin.stdout,
            stderr=origin.stderr,
            started=origin.started,
            volumes=origin.volumes,
        )


class Record(Frozen, frozen=True, kw_only=True):
    """Everything that a node must know of a sandbox after a restart."""

    id: str
    name: str
    spec: SandboxSpec
    image_digest: str
    created: float
    version: int = VERSION
    state: SandboxState = SandboxState.CREATED
    main: str = ""  # the id of its main process in the guest; empty: its own
    recipe: Recipe | None = None  # it is the template of a workload
    owner: str = ""  # the id of the token that alone sees it, beside those that see everything
    calls: CallsEndpoint | None = None  # where its calls go now: the spec's, or the newest resume's
    generation: int = 0  # the number N of its newest machine-N
    has_disk: bool = False  # machine-N/overlay holds its files
    template: str = ""  # the name of the template that its machine's memory began as,
    template_digest: str = ""  # and of its content: what a capture is a difference to, whatever is newest by then
    parent: str | None = None  # the snapshot (digest) that its machine goes on from; None: that template
    restored: str = ""  # the snapshot that the pager of its machine reads: after a checkpoint ``parent`` is another
    populates: bool = False  # that pager was told to bring everything
    snapshots: list[KeptSnapshot] = msgspec.field(default_factory=list)  # oldest first
    full_next: bool = False  # a capture was taken and lost: Firecracker's dirty log no longer tells all
    addresses: dict[str, str] = msgspec.field(default_factory=dict)  # its own, by network
    ports: list[PublishedPort] = msgspec.field(default_factory=list)  # with the host's numbers, while it has them
    started: float | None = None
    finished: float | None = None
    exit_status: int | None = None
    cause: str = ""
    detail: str = ""
    restarts: int = 0  # how often in a row it was started again by its policy

    def names(self, digest: str) -> bool:
        """Whether the sandbox needs this snapshot."""
        return digest == self.parent or any(kept.info.digest == digest for kept in self.snapshots)

    def snapshot(self, digest: str) -> KeptSnapshot | None:
        """The snapshot with this digest, or a unique beginning of it (with or without ``sha256:``).

        A compacted one is found by its former digests too: who wrote one down goes on using it.
        """
        wanted = digest.removeprefix("sha256:")
        found = [
            kept
            for kept in self.snapshots
            if any(one.removeprefix("sha256:").startswith(wanted) for one in (kept.info.digest, *kept.formerly))
        ]
        return found[0] if len(found) == 1 and wanted else None


class Folder:
    """One sandbox's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def log(self) -> Path:
        return self.root / "log"

    def new_capture(self) -> Path:
        """An empty folder of a name that was never used: the other side of a shared folder remembers old ones. Raises
        NoSpace."""
        path = self.root / f"capture-{secrets.token_hex(4)}"
        with space_checked(str(path)):
            path.mkdir(mode=0o700)
        return path

    @property
    def disk(self) -> Path:
        return self.root / "disk"

    @property
    def disk_index(self) -> Path:
        return self.root / "disk-index"

    def overlay(self, generation: int) -> Path:
        return self.machine(generation) / "overlay"

    @property
    def archives(self) -> Path:
        return self.root / "archives"

    def machine(self, generation: int) -> Path:
        return self.root / f"machine-{generation}"

    def load(self) -> Record:
        """Raises ProtocolError for a record that does not read or is of a newer version."""
        path = self.root / "sandbox.json"
        try:
            record = msgspec.json.decode(path.read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ProtocolError(f"{path} does not read: {error}") from error
        if record.version > VERSION:
            raise ProtocolError(f"{path} has version {record.version}", hint="Update Perdure: a newer one wrote it.")
        return record

    def save(self, record: Record) -> None:
        """Replace the record durably (fsync of file and folder). Raises NoSpace."""
        target, fresh = self.root / "sandbox.json", self._fresh
        try:
            with space_checked(str(target)), fresh.open("wb") as file:
                file.write(msgspec.json.encode(record))
                file.flush()
                os.fsync(file.fileno())
                fresh.replace(target)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        durable.sync(self.root)

    def forget_unsaved(self) -> None:
        """What a node that was killed while it saved left. Not while anybody saves."""
        self._fresh.unlink(missing_ok=True)

    @property
    def _fresh(self) -> Path:
        return self.root / "sandbox.json.new"

    def forget_captures(self) -> None:
        for path in self.root.glob("capture-*"):
            shutil.rmtree(path, ignore_errors=True)

    def keep_disk(self, generation: int) -> None:
        """Of a machine that has ended at a snapshot."""
        with contextlib.suppress(OSError):  # then its next machine gets it from the snapshot
            self.overlay(generation).rename(self.disk)

    def tidy(self, record: Record) -> None:
        """Remove what an interrupted operation left."""
        self.forget_captures()
        self.disk_index.with_name("disk-index.new").unlink(missing_ok=True)
        if record.state is not SandboxState.SUSPENDED:
            self.disk.unlink(missing_ok=True)
        for path in self.root.glob("machine-*"):
            if path != self.machine(record.generation) or not record.has_disk:
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        def missing(_function: object, _path: str, failed: tuple[type[BaseException], BaseException, object]) -> None:
            if not isinstance(failed[1], FileNotFoundError):  # else: a kept disk that was just deleted for its room
                raise failed[1]

        shutil.rmtree(self.root, onerror=missing)
