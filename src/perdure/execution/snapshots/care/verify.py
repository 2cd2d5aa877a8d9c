"""Everything that a restore would read is read and checked; all that is wrong is reported, not only the first.

Blocking: run it in a thread. What several snapshots share is read once. While a snapshot is read it is leased, so
garbage collection leaves it alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from perdure.errors import NoSpace, NotFound, PerdureError, SnapshotInvalid, Unavailable
from perdure.execution.snapshots import restore, spaces, templates
from perdure.execution.snapshots.care import content
from perdure.execution.snapshots.care.blobs import LOST, Blobs, finding
from perdure.execution.snapshots.layers import KIND_NAMES
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.templates import Template
from perdure.formats import blockmap, manifest
from perdure.formats.blockmap import BLOCK, DISK, LAYER, MEMORY, NO_BASE, ROLE_FLAT, ZERO, BlockMap, Run
from perdure.formats.manifest import Snapshot, Space, digest_of
from perdure.host.progress import Progress, silent
from perdure.reports import Finding, NotRestored, Verification

# A generation id, and a vsock event in its queue: three blocks with Firecracker 1.12, for which a fourth may stand in.
OWN_BLOCKS_MAX = 8
_REBUILD = "Bring the folder back, or start the sandbox again from its image."


@dataclass(frozen=True)
class Restored:
    """What a snapshot was once it had been restored for real, and before any of its instructions ran."""

    memory_digest: str  # ``content.digest_of_file`` of its whole memory, without
    own_blocks: frozenset[int] = frozenset()  # what the machine itself wrote as it was loaded and read
    disk_problem: str = ""  # what fsck said of the disk, where it was not clean


class RealRestore(Protocol):
    """Restores a snapshot into a machine that stays paused, reads its memory, checks its disk's file system."""

    def __call__(self, snapshot: Snapshot) -> Restored: ...


def snapshot(
    store: Store,
    digest: str,
    *,
    templates: Path,
    facts: Mapping[str, object] | None = None,
    restore: RealRestore | None = None,
    progress: Progress = silent,
) -> Verification:
    """Verify one snapshot. Raises NotFound where the store has none of this digest.

    ``templates`` is ``home.templates``; ``facts``: what is known of this machine (names as in ``Facts``).
    """
    if digest not in store.digests():
        raise NotFound(f"snapshot {digest} is not in the store {store.folder}", hint="`fcrun snapshot ls` lists all.")
    verifier = _Verifier(store, templates, facts or {}, restore, progress)
    verifier.expect([digest])
    verifier.snapshot(digest)
    return verifier.report()


def whole(
    store: Store,
    *,
    templates: Path,
    facts: Mapping[str, object] | None = None,
    restore: RealRestore | None = None,
    progress: Progress = silent,
) -> Verification:
    """Verify every manifest of the store and all that they need, and count what none needs."""
    verifier = _Verifier(store, templates, facts or {}, restore, progress)
    verifier.layout()
    present = _sizes(store.folder / "blobs" / "sha256")
    snapshots = store.digests()
    artifacts = sorted(set(store.tags().values()) - set(snapshots))
    verifier.expect([*snapshots, *artifacts])
    for digest in snapshots:
        verifier.snapshot(digest)
    for digest in artifacts:
        verifier.artifact(digest)
    verifier.orphans(present)
    return verifier.report()


def _sizes(folder: Path) -> dict[str, int]:
    """In bytes, of the files in there. What goes meanwhile is not there."""
    sizes = {}
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            sizes[path.name] = path.stat().st_size
    return sizes


class _Verifier:
    def __init__(
        self,
        store: Store,
        folder: Path,
        facts: Mapping[str, object],
        real: RealRestore | None,
        progress: Progress,
    ) -> None:
        self._store = store
        self._folder = folder
        self._facts = facts
        self._real = real
        self._progress = progress
        self._findings: list[Finding] = []
        self._blobs = Blobs(store, self._findings, progress)
        self._templates: dict[tuple[str, str], Template | None] = {}  # by name and digest
        self._template_runs: dict[tuple[str, str], list[Run]] = {}
        self._needed: set[str] = set()
        self._snapshots = self._restored = 0
        self._not_restored: list[NotRestored] = []
        self._orphans = (0, 0)
        self._laid: dict[tuple[int, bytes], tuple[list[str], list[Run]]] = {}  # the last chain of each base, flattened

    def report(self) -> Verification:
        self._progress("Verifying", 1, 1)
        return Verification(
            findings=self._findings,
            snapshots=self._snapshots,
            blobs=len(self._blobs.seen),
            blob_bytes=self._blobs.read_bytes,
            frames=self._blobs.frames,
            content_bytes=self._blobs.content_bytes,
            restored=self._restored,
            not_restored=self._not_restored,
            remote=sorted(self._blobs.remote),
            orphans=self._orphans[0],
            orphan_bytes=self._orphans[1],
        )

    def expect(self, digests: Iterable[str]) -> None:
        """How much there is to read, for the progress."""
        sizes: dict[str, int] = {}
        for digest in digests:
            try:
                blobs = manifest.blobs_of(self._store.blob_path(digest).read_bytes())
            except (PerdureError, OSError):
                continue  # said when its turn comes
            sizes |= {blob.digest: blob.size for blob in blobs}
        self._blobs.total_bytes = sum(sizes.values())

    def _find(self, what: str, problem: str, *, layer: str = "", hint: str = "") -> None:
        self._findings.append(Finding(object=what, problem=problem, layer=layer, hint=hint))

    def _blame(self, what: str, error: PerdureError | OSError, hint: str = "") -> None:
        self._findings.append(finding(what, error, hint))

    # -- the store as a whole -----------------------------------------------------------------------------------------
    def layout(self) -> None:
        path = self._store.folder / "oci-layout"
        try:
            version = msgspec.json.decode(path.read_bytes(), type=dict[str, str]).get("imageLayoutVersion")
            if version != "1.0.0":
                self._find("the store", f"{path} names version {version} of the OCI image layout, not 1.0.0")
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._find("the store", f"{path} does not read: {error}", hint="Other programs cannot read the store.")

    def artifact(self, digest: str) -> None:
        """A manifest that is no snapshot: a template or an image that was pulled or is to be pushed."""
        if self._was_removed(digest):
            return
        what = f"artifact {digest}"
        data = self._manifest(what, digest)
        if data is None:
            return
        blobs = manifest.blobs_of(data)
        self._needed |= {digest, *(blob.digest for blob in blobs)}
        broken = [blob for blob in blobs if not self._blobs.read(blob).sound]
        if broken:
            self._find(what, f"{len(broken)} of its {len(blobs)} blobs are not sound: it cannot be used")

    def orphans(self, present: Mapping[str, int]) -> None:
        needed = {digest.removeprefix("sha256:") for digest in self._needed}
        sizes = [size for name, size in present.items() if name not in needed]
        self._orphans = (len(sizes), sum(sizes))

    def _was_removed(self, digest: str) -> bool:
        """Since the look at what there is: then nothing is wrong with it."""
        if self._store.blob_path(digest).exists():
            return False
        return digest not in self._store.digests() and digest not in self._store.tags().values()

    def _manifest(self, what: str, digest: str) -> bytes | None:
        path = self._store.blob_path(digest)
        self._needed.add(digest)
        try:
            data = path.read_bytes()
            if digest_of(data) != digest:
                raise SnapshotInvalid(f"the manifest {path} does not have its digest: it was damaged or changed")
            manifest.blobs_of(data)
        except FileNotFoundError:
            self._find(what, f"its manifest {path} is missing", hint=f"Forget it: fcrun snapshot rm --force {digest}")
            return None
        except (PerdureError, OSError) as error:
            self._blame(what, error, f"What it needs is not known. Forget it: fcrun snapshot rm --force {digest}")
            return None
        return data

    # -- one snapshot -------------------------------------------------------------------------------------------------
    def snapshot(self, digest: str) -> None:
        what = f"snapshot {digest}"
        with self._store.reading(digest):
            if self._was_removed(digest):
                return
            self._snapshots += 1
            data = self._manifest(what, digest)
            if data is None:
                return
            blobs = manifest.blobs_of(data)
            self._needed |= {blob.digest for blob in blobs}
            before = len(self._findings)
            reads = {blob.digest: self._blobs.read(blob) for blob in blobs}
            broken = [blob for blob in blobs if not reads[blob.digest].sound]
            if broken:
                self._find(what, f"{len(broken)} of its {len(blobs)} blobs are not sound: it cannot be restored")
            if broken and blobs[0] in broken:
                return  # the config tells how to read the others
            try:
                found = self._store.get(digest)
            except (PerdureError, OSError) as error:
                self._blame(what, error)
                return
            self._snapshot(what, found)
            self._working_set(what, digest)
            if self._real is not None and len(self._findings) == before:
                if away := {layer: url for layer, url in self._blobs.remote.items() if layer in reads}:
                    self._not_restored.append(_kept_elsewhere(self._store, found, away))
                else:
                    self._restore(what, found, self._real)

    def _snapshot(self, what: str, found: Snapshot) -> None:
        config = found.config
        for name in restore.MUST_AGREE:
            made, here = getattr(config.facts, name), self._facts.get(name)
            if here is not None and here != made:
                self._find(what, f"{name} was {made}, is {here} here", hint="Restore it where that is the same.")
        template = self._template(config.template, config.template_digest)
        if template is not None and template.digest != config.template_digest:
            problem = (
                f"it was made over template {config.template_digest}, but {template.name} is {template.digest} now"
            )
            self._find(what, problem + ": wrong base", hint=_REBUILD)
        elif template is not None and template.size != found.memory.size:
            self._find(what, f"it has {found.memory.size} bytes of memory, its template {template.size}")
        runs = self._template_runs.get((config.template, config.template_digest))
        base = bytes.fromhex(config.template_digest) if len(config.template_digest) == 64 else b""
        self._space(what, found.memory, MEMORY, base, runs)
        self._space(what, found.disk, DISK, NO_BASE, [])
        if self._blobs.seen[found.state.digest].sound:
            try:
                restore.device_state(self._store, found)
            except (PerdureError, OSError) as error:
                self._blame(what, error, LOST)

    def _template(self, name: str, digest: str) -> Template | None:
        key = (name, digest)
        if key not in self._templates:
            found = None
            try:
                found = templates.load(self._folder, name, digest)
                self._template_runs[key] = found.runs()
            except (PerdureError, OSError) as error:
                self._blame(f"template {name}", error, _REBUILD)
            self._templates[key] = found
        return self._templates[key]

    def _working_set(self, what: str, digest: str) -> None:
        path = self._store.folder / "working-sets" / digest.removeprefix("sha256:")
        if path.exists() and path.stat().st_size != 4 and not self._store.working_set(digest):
            self._find(what, f"its working set {path} is damaged", hint="It costs its next restore time, no more.")

    def _restore(self, what: str, found: Snapshot, real: RealRestore) -> None:
        self._progress("Restoring", 0, 0)
        try:
            restored = real(found)
            with spaces.memory_of(
                self._store, found, templates.load(self._folder, found.config.template, found.config.template_digest)
            ) as memory:
                expected = content.digest(memory, without=restored.own_blocks)
        except (NoSpace, Unavailable):
            raise  # that is no fault of the snapshot
        except (PerdureError, OSError) as error:
            self._blame(what, error)
            return
        self._restored += 1
        if len(restored.own_blocks) > OWN_BLOCKS_MAX:
            own = len(restored.own_blocks)
            self._find(what, f"restored, {own} blocks of its memory changed before any of its instructions ran")
        if restored.memory_digest != expected:
            problem = f"restored, its memory has digest {restored.memory_digest}, not {expected}"
            self._find(what, problem, hint="Firecracker or the pager put other bytes there than the layers hold.")
        if restored.disk_problem:
            self._find(what, f"restored, its disk is not clean: {restored.disk_problem}")

    # -- maps ---------------------------------------------------------------------------------------------------------
    def _space(self, what: str, record: Space, kind: int, base: bytes, below: Sequence[Run] | None) -> None:
        """``below``: the runs that the lowest layer lies over; None: they are not known."""
        name, blocks = KIND_NAMES[kind], record.size // BLOCK
        under, maps = base, []
        for layer in record.layers:
            held = self._blobs.seen[layer.digest].map
            if held is not None:
                place, hexadecimal = f"{name} of {what}", layer.digest.removeprefix("sha256:")
                if (held.kind, held.blocks) != (kind, blocks):
                    problem = f"it is for {KIND_NAMES[held.kind]} of {held.blocks} blocks, not {name} of {blocks}"
                    self._find(place, problem, layer=hexadecimal)
                elif held.base != under:
                    problem = f"it is a difference to {held.base.hex()}, not to {under.hex()}: wrong base"
                    self._find(place, problem, layer=hexadecimal, hint="A layer below it or the template was replaced.")
                else:
                    maps.append(held)
            under = bytes.fromhex(layer.digest.removeprefix("sha256:"))
        if not self._blobs.seen[record.map.digest].sound:
            return
        try:
            flat = _flat_map(self._store.read(record.map), record, kind, base)
        except (PerdureError, OSError) as error:
            self._blame(f"{name} map of {what}", error, LOST)
            return
        if len(maps) == len(record.layers) and below is not None:
            expected = self._laid_over(kind, base, record, below, maps)
            if flat != expected:
                first = min(run.first for run in set(flat) ^ set(expected))
                problem = f"from block {first} on it does not say what the layers say"
                self._find(f"{name} map of {what}", problem, hint="A restore would read wrong blocks. " + LOST)

    def _laid_over(
        self, kind: int, base: bytes, record: Space, below: Sequence[Run], maps: Sequence[BlockMap]
    ) -> list[Run]:
        """The maps of the layers over each other. The next snapshot of a line goes on from the one before it."""
        chain = [layer.digest for layer in record.layers]
        known, flat = self._laid.get((kind, base), ([], []))
        if not known or known != chain[: len(known)]:
            known, flat = [], list(below)
        for number in range(len(known), len(maps)):
            runs = maps[number].runs
            upper = [run if run.source == ZERO else run._replace(source=LAYER + number) for run in runs]
            flat = blockmap.laid_over(flat, upper)
        self._laid[kind, base] = (chain, flat)
        return flat


def _kept_elsewhere(store: Store, found: Snapshot, away: Mapping[str, str]) -> NotRestored:
    """``away``: the layers that are not here, and the URLs of the stores that hold them.

    All of its memory would have to be fetched, which nobody asked for who asked to have it verified.
    """
    layers = [layer.digest for layer in found.memory.layers if layer.digest in away]
    last = {away[layer]: layer for layer in layers}  # of each store
    made = {one.memory.layers[-1].digest: one.digest for one in _line(store, found) if one.memory.layers}
    pulls = [f"fcrun snapshot pull {url}@{made.get(layer, found.digest)}" for url, layer in last.items()]
    what = f"{len(layers)} of its {len(found.memory.layers)} memory layers {'is' if len(layers) == 1 else 'are'}"
    if len(layers) == len(found.memory.layers):
        what = "its memory is"
    return NotRestored(
        snapshot=found.digest,
        reason=f"{what} kept elsewhere: {', '.join(last)}",
        hint=f"Bring the memory here and verify it again: {'; '.join(pulls)}",
    )


def _line(store: Store, found: Snapshot) -> Iterator[Snapshot]:
    """The snapshot and what it was made from, as far as that is there: newest first."""
    while True:
        yield found
        if not found.config.parent:
            return
        try:
            found = store.get(found.config.parent)
        except (PerdureError, OSError):
            return


def _flat_map(data: bytes, record: Space, kind: int, base: bytes) -> list[Run]:
    flat = blockmap.decode(data)
    if (flat.kind, flat.role, flat.blocks, flat.layers) != (kind, ROLE_FLAT, record.size // BLOCK, len(record.layers)):
        raise SnapshotInvalid("it is the map of something else")
    if flat.base != base:
        raise SnapshotInvalid(f"it was made over {flat.base.hex()}, not over {base.hex()}: wrong base")
    return flat.runs
