"""All sandboxes of a node: made, found by id, prefix or name, listed, reconciled at a start."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from perdure.errors import Conflict, InvalidValue, NotFound, PerdureError, ProtocolError
from perdure.execution.guest.session import GuestCall
from perdure.execution.images.library import ImageLibrary
from perdure.execution.network import networks
from perdure.execution.network.networks import Networks
from perdure.execution.sandboxes import (
    acting,
    bounds,
    disk,
    fittings,
    forking,
    mounts,
    networking,
    rehearsing,
    restarting,
    workload,
)
from perdure.execution.sandboxes import names as sandbox_names
from perdure.execution.sandboxes.admission import Admission, Limits
from perdure.execution.sandboxes.events import Events
from perdure.execution.sandboxes.ground import Ground
from perdure.execution.sandboxes.machine import end_stray
from perdure.execution.sandboxes.needs import Needs
from perdure.execution.sandboxes.record import Folder, Record
from perdure.execution.sandboxes.rooms import Rooms
from perdure.execution.sandboxes.sandbox import Sandbox, signal_number
from perdure.execution.sandboxes.states import LIVE
from perdure.execution.sandboxes.volumes import Volumes
from perdure.execution.snapshots.diskspace import space_checked
from perdure.execution.snapshots.store import Store
from perdure.formats.manifest import Origin, Snapshot
from perdure.host import headroom
from perdure.host.paths import Home
from perdure.host.progress import Progress, silent
from perdure.model import (
    CallsEndpoint,
    Fork,
    Network,
    Recipe,
    SandboxSpec,
    SandboxState,
    new_id,
)

_log = logging.getLogger(__name__)


class Sandboxes:
    """``answer_call`` answers a guest's call at the endpoint given with it (None: the sandbox has none).
    ``disks_bytes``: see ``Rooms``."""

    def __init__(
        self,
        home: Home,
        ground: Ground,
        images: ImageLibrary,
        store: Store,
        answer_call: Callable[[CallsEndpoint | None, GuestCall], Awaitable[None]],
        disks_bytes: int = 0,
        limits: Limits | None = None,
    ) -> None:
        self.networks = Networks(home.networks)
        self.images = images
        self.ground = ground
        self.events = Events()
        self.volumes = Volumes(home, self._records)
        self._home = home
        self.before_moving: Callable[[str], None] = lambda sandbox_id: None  # a use case is about to move it
        self._sandboxes: dict[str, Sandbox] = {}
        self.needs = Needs(home, ground, images, store, self._sandboxes)
        self._rooms = Rooms(
            home,
            ground,
            images,
            store,
            answer_call,
            self._emit,
            self.needs.named_by_others,
            self.needs.drop_once_read,
            lambda sandbox_id: self.before_moving(sandbox_id),
            self.networks,
            self._records,
            disks_bytes,
            self.volumes,
            Admission(self._live_memory, limits),
        )

    # -- events -------------------------------------------------------------------------------------------------------
    def _emit(self, kind: str, record: Record, details: dict[str, Any]) -> None:
        if kind == "sandbox.removed":
            self._sandboxes.pop(record.id, None)
            self._tell_names(record)
        self.events.tell(record.owner, kind, sandbox_id=record.id, name=record.name, **details)

    def tell(self, kind: str, *, sandbox_id: str = "", **details: Any) -> None:
        """Record an event and wake who follows."""
        known = self._sandboxes.get(sandbox_id)
        owner = known.record.owner if known is not None else acting.current().owner or ""
        self.events.tell(owner, kind, sandbox_id=sandbox_id, **details)

    # -- finding ------------------------------------------------------------------------------------------------------
    def find(self, ref: str) -> Sandbox:
        """By id, name or unique prefix of an id, those that are not hidden. Raises NotFound, Conflict (ambiguous)."""
        exact = self._sandboxes.get(ref)  # however many there are
        if exact is not None and exact.record.recipe is None and acting.current().sees(exact.record.owner):
            acting.current().touch(exact.id)
            return exact
        shown = self.all()
        matches = (
            # names are unique among those of one owner; for who sees all, those of nobody in particular come first
            [sandbox for sandbox in shown if ref == sandbox.name and not sandbox.record.owner]
            or [sandbox for sandbox in shown if ref == sandbox.name]
            or [sandbox for sandbox in shown if ref and sandbox.id.startswith(ref)]
        )
        if len(matches) > 1:
            listed = ", ".join(sorted(sandbox.id for sandbox in matches))
            raise Conflict(f"{ref!r} is ambiguous: it could be {listed}", hint="Give more digits of the id.")
        if not matches:
            raise NotFound(f"no such sandbox: {ref}", hint=sandbox_names.hint(ref, [one.name for one in shown]))
        acting.current().touch(matches[0].id)
        return matches[0]

    def all(self) -> list[Sandbox]:
        """Newest first, but for hidden ones: those that whoever this is done for sees."""
        sees = acting.current().sees
        every = [sandbox for sandbox in self._sandboxes.values() if sandbox.record.recipe is None]
        shown = [sandbox for sandbox in every if sees(sandbox.record.owner)]
        return sorted(shown, key=lambda sandbox: sandbox.record.created, reverse=True)

    def hidden(self) -> list[Sandbox]:
        """The templates of workloads."""
        return [sandbox for sandbox in self._sandboxes.values() if sandbox.record.recipe is not None]

    def rename(self, ref: str, name: str) -> Sandbox:
        """Raises NotFound, Conflict (the name is taken), InvalidValue."""
        sandbox = self.find(ref)
        if not name:
            raise InvalidValue("a sandbox needs a name")
        before = sandbox.record.name
        sandbox.save(name=self._free_name(name, sandbox.record.owner))
        sandbox.emit("renamed", before=before)
        self._tell_names(sandbox.record)
        return sandbox

    # -- making -------------------------------------------------------------------------------------------------------
    def create(self, spec: SandboxSpec, recipe: Recipe | None = None) -> Sandbox:
        """Record a new sandbox; with a recipe, a hidden one.

        Raises InvalidValue, NotFound (the image), Conflict (the name), NoSpace.
        """
        bounds.check(spec)
        restarting.check(spec)
        fittings.check(spec)
        for volume in mounts.volumes_of(spec):
            self.volumes.get(volume)  # nobody removes it from here on: the sandbox has it
        image = self.images.get(spec.image)
        workload.command(spec, image.config)
        spec = networking.exposed(spec, image.config.exposed_ports)
        networking.check(spec, self.networks)
        workload.health_check(spec, image.config)
        signal_number(workload.stop_signal(spec, image.config))
        disk.admit(self._home, self._home.sandboxes, 0, "a sandbox")
        return self._add(
            Record(
                id=new_id(),
                name=self._free_name(spec.name, owner := acting.current().owner or ""),
                spec=spec,
                image_digest=image.digest,
                created=time.time(),
                calls=spec.calls,
                recipe=recipe,
                addresses=networking.place(spec, self.networks, self._records()),
                owner=owner,
            )
        )

    @contextlib.asynccontextmanager
    async def with_volumes(self, wish: SandboxSpec) -> AsyncIterator[SandboxSpec]:
        """The wish, its mounts checked, the volumes that it names there; what is not created with it then leaves none
        without a name. Raises InvalidValue, NoSpace."""
        if not wish.mounts:
            yield wish
            return
        self.images.get(wish.image)  # before volumes are made for nothing
        spec = await asyncio.to_thread(self.volumes.prepared, wish)
        try:
            yield spec
        except BaseException:
            await asyncio.to_thread(self.volumes.take_back, wish, spec)
            raise

    async def fork(
        self, ref: str, forks: Sequence[Fork], progress: Progress = silent, *, populate: bool | None = None
    ) -> list[Sandbox]:
        """New sandboxes, which go on from where another one is, or from a snapshot. All of them run then, or none is
        there.

        Raises NotFound (no such sandbox or snapshot, its image), Conflict (a name), what a checkpoint and a resume do.
        """
        self._check_names([fork.name for fork in forks])  # before a checkpoint is taken for nothing
        return await self.fork_from((await self._moment(ref)).digest, forks, progress, populate=populate)

    async def fork_from(
        self,
        digest: str,
        forks: Sequence[Fork],
        progress: Progress = silent,
        *,
        log: Path | None = None,
        populate: bool | None = None,
    ) -> list[Sandbox]:
        """The same from a snapshot. log: what its main process had written by then, for their logs to begin with."""
        self._check_names([fork.name for fork in forks])
        with contextlib.ExitStack() as held:  # until the forks name it
            snapshot = await self.needs.leased(digest, held)
            origin = forking.origin_of(snapshot)
            self.images.get(snapshot.config.image_digest)
            disk.admit(self._home, self._home.sandboxes, 0, "a fork")
            ids = [new_id() for _ in forks]
            wanted = dict.fromkeys(ids, origin.spec.memory_mib)
            self._rooms.admission.check(
                wanted, await self.ground.memory_bytes()
            )  # all of them, before the first is made
            folder = held.enter_context(forking.making(self._home.run, ids))
            made: list[Sandbox] = []
            try:
                for sandbox_id, fork in zip(ids, forks, strict=True):
                    made.append(self._forked(sandbox_id, fork, snapshot, origin, log))
                await forking.start(self._rooms, snapshot, made, folder, progress, populate)
            except BaseException:
                await asyncio.gather(*(sandbox.remove(force=True) for sandbox in made), return_exceptions=True)
                raise
            await asyncio.to_thread(self.needs.let_go_if_named, snapshot.digest)
            return made

    def _check_names(self, wanted: Sequence[str]) -> None:
        given = [name for name in wanted if name]
        if not wanted or len(set(given)) != len(given):
            raise InvalidValue("each fork needs a name of its own, or none")
        for name in given:
            self._free_name(name, acting.current().owner or "")

    async def _moment(self, ref: str) -> Snapshot:
        try:
            sandbox = self.find(ref)
        except NotFound:
            if acting.current().owner is not None:  # others' snapshots are not there: not even to be ambiguous
                if (current := self.needs.compacted(ref)) is None:
                    raise
                return await asyncio.to_thread(self._rooms.store.get, current)
            return await self.needs.find(ref)
        self.before_moving(sandbox.id)
        digest = await forking.moment_of(sandbox)
        return await asyncio.to_thread(self._rooms.store.get, digest)

    def shows(self, digest: str) -> bool:
        """Whether a snapshot is there at all for whoever this is done for: who sees one of its sandboxes sees it."""
        return acting.current().owner is None or any(sandbox.record.names(digest) for sandbox in self.all())

    def _forked(self, sandbox_id: str, fork: Fork, snapshot: Snapshot, origin: Origin, log: Path | None) -> Sandbox:
        source = self._sandboxes.get(snapshot.config.sandbox_id)
        owner = acting.current().owner or (source.record.owner if source is not None else "")  # what it holds is theirs
        name = self._free_name(fork.name, owner)
        record = forking.record_of(sandbox_id, name, fork, snapshot, origin, owner)
        addresses = networking.place(record.spec, self.networks, self._records())
        return self._add(msgspec.structs.replace(record, addresses=addresses), log)

    def _free_name(self, wanted: str, owner: str) -> str:
        """The name, or a random one. Raises Conflict, InvalidValue.

        Another owner's names are not taken: who cannot see a sandbox is not told of it this way either.
        """
        every = list(self._sandboxes.values())
        taken = {sandbox.name: sandbox for sandbox in every if sandbox.record.owner == owner}
        if wanted and sandbox_names.check_name(wanted) in taken:
            raise Conflict(
                f"the name {wanted} is taken by sandbox {taken[wanted].id}",
                hint=f"Choose another, or remove that one: fcrun rm {wanted}",
            )
        return wanted or sandbox_names.random_name({sandbox.name for sandbox in every})

    def _add(self, record: Record, log: Path | None = None) -> Sandbox:
        folder = Folder(self._home.sandboxes / record.id)
        try:
            with space_checked("a sandbox"):
                folder.root.mkdir(mode=0o700)
                if log is not None:
                    shutil.copyfile(log, folder.log)
            folder.save(record)
        except BaseException:
            folder.remove()
            raise
        sandbox = Sandbox(self._rooms, folder, record)
        self._sandboxes[record.id] = sandbox
        acting.current().touch(record.id)
        self.tell("sandbox.created", sandbox_id=record.id, name=record.name, image=record.spec.image)
        self._tell_names(record)
        return sandbox

    def _place(self, sandbox: Sandbox) -> None:
        """One that was made before there were networks gets its addresses now, once and for all. The others are known
        by then: those that they have are taken."""
        try:
            if not sandbox.record.addresses:
                addresses = networking.place(sandbox.record.spec, self.networks, self._records())
                sandbox.record = msgspec.structs.replace(sandbox.record, addresses=addresses)
                if addresses:
                    sandbox.save()
        except (PerdureError, OSError) as error:
            _log.error("the addresses of sandbox %s: %s", sandbox.id, error)

    def _records(self) -> list[Record]:
        return [sandbox.record for sandbox in self._sandboxes.values()]

    def _tell_names(self, changed: Record) -> None:
        """Those in its networks hear that it came, went or has another name, where members know each other's."""
        shared = {network.name for network in self.networks.all() if not network.isolated} & changed.addresses.keys()
        for sandbox in self._sandboxes.values():
            if sandbox.machine is not None and sandbox.record.addresses.keys() & shared:
                sandbox.spawn_task(networking.tell_names(sandbox))

    async def connect(self, network: Network, ref: str, aliases: Sequence[str] = ()) -> None:
        """Put a sandbox into one more network, also while it runs. Raises Conflict: it is in it."""
        sandbox = self.find(ref)
        async with sandbox.moving:
            if network.name in sandbox.record.addresses:
                raise Conflict(f"sandbox {sandbox.name} is in network {network.name} already")
            await networking.change(sandbox, [*sandbox.record.addresses, network.name], aliases)
        self._tell_names(sandbox.record)

    async def disconnect(self, network: Network, ref: str) -> None:
        """Take a sandbox out of a network. Raises NotFound: it is not in it; Conflict: it publishes ports, and has no
        other."""
        sandbox = self.find(ref)
        async with sandbox.moving:
            before = sandbox.record
            if network.name not in before.addresses:
                raise NotFound(f"sandbox {sandbox.name} is not in network {network.name}")
            left = [name for name in before.addresses if name != network.name]
            if not left and before.spec.ports:
                raise Conflict(
                    f"sandbox {sandbox.name} publishes ports, and {network.name} is the only network that it is in",
                    hint=f"Put it into another one first: fcrun network connect NETWORK {sandbox.name}",
                )
            await networking.change(sandbox, left)
        self._tell_names(before)

    async def forget_network(self, network: Network) -> None:
        """What there is below the line of a network that was removed."""
        try:
            launcher = await self.ground.living_launcher()
            if launcher is not None:
                await launcher.forget_network(networks.bridge(network))
        except PerdureError as error:
            _log.info("the bridge of network %s stays until the host is stopped: %s", network.name, error)

    def members(self, network: Network) -> dict[str, str]:
        """The names of the sandboxes in a network, with their addresses."""
        return networking.users(network, self._records())

    def users_of(self, image_digest: str) -> list[Sandbox]:
        return [sandbox for sandbox in self._sandboxes.values() if sandbox.record.image_digest == image_digest]

    def _live_memory(self) -> dict[str, int]:
        """What ``Admission`` asks for; templates that are being made count too."""
        every = self._sandboxes.values()
        return {sandbox.id: sandbox.record.spec.memory_mib for sandbox in every if sandbox.state in LIVE}

    # -- the node's life ----------------------------------------------------------------------------------------------
    async def load(self) -> None:
        """Read all records and join them with what lives below the line. Nothing is started for it."""
        await asyncio.to_thread(headroom.keep, self._home)
        await asyncio.to_thread(self.networks.load)
        await asyncio.to_thread(self.volumes.sweep)
        for root in sorted(self._home.sandboxes.iterdir()):
            if not (root / "sandbox.json").exists():
                _log.warning("%s has no record: a creation that was not acknowledged", root)
                await asyncio.to_thread(Folder(root).remove)
                continue
            try:
                folder = Folder(root)
                record = folder.load()
                self._sandboxes[record.id] = Sandbox(self._rooms, folder, record)
            except ProtocolError as error:
                _log.error("left alone: %s", error)
        for sandbox in self._sandboxes.values():
            await asyncio.to_thread(self._place, sandbox)
        launcher = None
        if self._sandboxes or rehearsing.left_over(self._home.run):
            launcher = await self.ground.living_launcher()
        live = [sandbox for sandbox in self._sandboxes.values() if sandbox.state in LIVE]
        _log.info("%d sandboxes, %d of them live", len(self._sandboxes), len(live))
        await asyncio.gather(*(self._reconcile(sandbox, launcher) for sandbox in self._sandboxes.values()))
        for sandbox in self.hidden():
            if sandbox.state is not SandboxState.SUSPENDED:  # of a node that was killed while it made a template
                await sandbox.remove(force=True)
        for sandbox_id in await asyncio.to_thread(forking.unfinished, self._home.run):
            if sandbox_id in self._sandboxes:  # the fork was not acknowledged: nobody knows of it
                await self._sandboxes[sandbox_id].remove(force=True)
        await asyncio.to_thread(forking.sweep, self._home.run)
        await asyncio.to_thread(self.needs.drop_unnamed)
        if launcher is not None:
            for kept in await launcher.list():
                if kept.sandbox_id not in self._sandboxes:
                    await end_stray(launcher, kept.sandbox_id)
        await asyncio.to_thread(rehearsing.sweep, self._home.run)

    @property
    def store(self) -> Store:
        return self._rooms.store

    async def _reconcile(self, sandbox: Sandbox, launcher: Any) -> None:
        try:
            await sandbox.reconcile(launcher)
            async with sandbox.moving:  # or it may have ended by itself meanwhile, with nothing to withdraw yet
                listens = sandbox.state in (SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.SUSPENDED)
                if listens:
                    await networking.publish(sandbox)
            if listens:
                await networking.tell_names(sandbox)
        except (PerdureError, OSError) as error:
            _log.error("reconciling %s: %r", sandbox.id, error)

    async def leave(self) -> None:
        """The daemon ends; machines run on."""
        await self.needs.leave()
        await asyncio.gather(*(sandbox.leave() for sandbox in list(self._sandboxes.values())))
