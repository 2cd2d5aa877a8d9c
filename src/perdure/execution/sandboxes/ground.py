"""What machines stand on: the assets, the launcher below the dotted line, the templates."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection

from perdure.errors import NotFound, PerdureError
from perdure.execution.images.image import Image
from perdure.execution.machine.remote import Launcher
from perdure.execution.sandboxes import disk
from perdure.execution.snapshots import templates, warming
from perdure.execution.snapshots.templates import Template
from perdure.host import assets, below
from perdure.host.assets import Assets
from perdure.host.below import HANGS_AFTER_S
from perdure.host.paths import Home
from perdure.host.progress import Progress, silent

LOOK_EVERY_S = 5.0
LOOKED_AT = 1000  # removed files at a time
FORGET_AFTER = 3  # looks: the emulated kernel knows it by another name, as it was renamed before it was removed
AT_ONCE = max(4, os.cpu_count() or 1)
DIALS_AT_ONCE = 16  # connections to ports of guests: the launcher hands each over, and has other things to do

_log = logging.getLogger(__name__)


class Ground:
    """Each part is made on its first use, and again when it is found gone."""

    def __init__(self, home: Home) -> None:
        self._home = home
        # Machines come up so many at a time: more would only wait for each other's processors, and where these are slow
        # so long that launcher and guests count as dead.
        self.turns = asyncio.Semaphore(AT_ONCE)
        # So many are captured at a time: until it is collected, a capture takes as much memory again as its guest has
        # changed, which admission does not count (docs/design/0018-policy.md).
        self.captures = asyncio.Semaphore(AT_ONCE)
        self.dials = asyncio.Semaphore(DIALS_AT_ONCE)
        self._assets: Assets | None = None
        self._launcher: Launcher | None = None
        self._memory: tuple[Launcher, int] | None = None
        self._templates: dict[tuple[int, int, str], Template] = {}
        self._making = asyncio.Lock()
        self._removed: dict[str, int] = {}  # what the emulated host holds, and for how many looks it has done so
        self._attached: dict[tuple[str, str, int], Template] = {}
        self._attaching: dict[tuple[str, str, int], asyncio.Lock] = {}

    @property
    def emulated(self) -> bool:
        return self._launcher is not None and self._launcher.address.emulated

    async def assets(self, progress: Progress = silent) -> Assets:
        """Raises Unavailable, AssetTampered, NoSpace …"""
        if self._assets is None:
            self._assets = await asyncio.to_thread(assets.ensure, self._home, progress)
        return self._assets

    async def launcher(self, progress: Progress = silent) -> Launcher:
        """A launcher that answers; the emulated host is started where it is needed."""
        async with self._making:
            if self._launcher is not None:
                try:
                    await self._launcher.ping(timeout_s=HANGS_AFTER_S)
                    return self._launcher
                except PerdureError:
                    self._launcher = None  # it died: a new one is started, which finds the machines that live
            parts = await self.assets(progress)
            address = await asyncio.to_thread(below.ensure, self._home, parts, progress)
            self._launcher = await Launcher.connect(address)
            return self._launcher

    async def living_launcher(self) -> Launcher | None:
        """The launcher that machines of ours may live below; None: none can, and nothing is left of them."""
        if self._launcher is not None:
            return await self.launcher()
        status = await asyncio.to_thread(below.status, self._home, timeout_s=HANGS_AFTER_S)
        if status.address is None:
            return None
        if status.answers:
            self._launcher = Launcher(status.address)
            return self._launcher
        if not status.emulated:
            return await self.launcher()  # it died, or never was in this boot; keepers outlive their launcher
        if status.running:
            _log.error("the emulated host does not answer: it is ended, with what runs in it")
            await asyncio.to_thread(below.stop, self._home)
        return None

    async def memory_bytes(self) -> int:
        """The memory of the host that machines run on; 0 where none is there yet, or its launcher does not answer."""
        launcher = self._launcher
        if launcher is None:
            return 0
        if self._memory is None or self._memory[0] is not launcher:
            try:
                answer = await launcher.ping(timeout_s=HANGS_AFTER_S)
            except PerdureError as error:
                _log.info("the memory below the line is not known: %s", error)
                return 0
            self._memory = launcher, int(answer.get("memory_bytes", 0))
        return self._memory[1]

    async def watch(self) -> None:
        """For ever: end an emulated host that hangs, so that its machines count as dead and are recovered elsewhere.

        A kernel that hangs closes no connection: without this, everything that waits for it waits for ever.
        """
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            launcher = self._launcher
            if launcher is None or not launcher.address.emulated:
                continue
            try:
                await launcher.ping(timeout_s=HANGS_AFTER_S)
            except PerdureError as error:
                status = await asyncio.to_thread(below.status, self._home)
                if status.running and not status.answers and status.address == launcher.address:
                    _log.error("the emulated host is ended, as it hangs: %s", error)
                    await asyncio.to_thread(below.stop, self._home)
                continue
            await self._let_go(launcher)

    async def _let_go(self, launcher: Launcher) -> None:
        """Make the emulated host forget what was removed here, so that its room is free."""
        removed = await asyncio.to_thread(below.removed, self._home)
        rounds = self._removed = {path: self._removed.get(path, 0) + 1 for path in removed}
        fresh = [path for path, times in rounds.items() if times <= FORGET_AFTER]
        if not fresh:
            return  # what stays is in use
        try:
            await launcher.look(fresh[:LOOKED_AT], forget_all=FORGET_AFTER in rounds.values())
        except PerdureError as error:  # one of before, which does not know the wish, or none any more
            _log.info("the emulated host still has %d removed files: %s", len(removed), error)

    async def facts(self) -> dict[str, object]:
        """What is known of this machine without starting anything, by the names of a snapshot's facts."""
        found: dict[str, object] = {}
        parts = self._assets or await asyncio.to_thread(assets.recorded, self._home)
        if parts is not None:
            found["firecracker"] = parts.firecracker_version
        if self._launcher is not None:
            try:
                found["cpu_vendor"], found["cpu_family"] = await warming.cpu(self._launcher)
            except PerdureError as error:
                _log.info("the CPU below the line is not known: %s", error)
        return found

    def templates_in_use(self, images: Collection[str]) -> set[str] | None:
        """The names of templates that the next start of one of these images (digests) may take; None: it is not known.

        Blocking.
        """
        parts = self._assets or assets.recorded(self._home)
        if parts is None:
            return None
        current = (parts.firecracker_version, *warming.kernel_digests(parts))
        names = {template.name for template in self._templates.values()}
        for path in self._home.templates.iterdir():
            try:
                _, facts, image = templates.described(self._home.templates, path.name)
                if (facts.firecracker, facts.kernel, facts.guestd) == current and (not image or image in images):
                    names.add(path.name)
            except NotFound:
                continue  # no template, or one that is being built
            except (PerdureError, OSError):
                names.add(path.name)  # of another kind: not ours to judge
        return names

    async def stand(
        self, vcpus: int, memory_mib: int, progress: Progress = silent, volumes: str = ""
    ) -> tuple[Launcher, Template]:
        """A launcher that answers, and the warm template of this shape (``volumes``: its drives for those, see
        ``mounts``). Raises MachineFailed, Unavailable …"""
        launcher, parts = await self.launcher(progress), await self.assets(progress)
        async with self._making:
            known = self._templates.get((vcpus, memory_mib, volumes))
            if known is None or not known.state.exists():
                known = await warming.ensure(
                    self._home,
                    parts,
                    launcher,
                    vcpus=vcpus,
                    memory_mib=memory_mib,
                    volumes=volumes,
                    progress=progress,
                )
                self._templates[vcpus, memory_mib, volumes] = known
            return launcher, known

    async def with_image(
        self,
        launcher: Launcher,
        base: Template,
        image: Image,
        disk_mib: int,
        progress: Progress = silent,
        volumes: str = "",
    ) -> Template:
        """The template with this image attached, or ``base`` where that cannot be made (its start then says why)."""
        key = (base.name, image.digest, disk_mib)
        async with self._attaching.setdefault(key, asyncio.Lock()):
            known = self._attached.get(key)
            if known is None or not known.state.exists():
                try:
                    known = await warming.attach(
                        self._home,
                        await self.assets(),
                        launcher,
                        base,
                        image_digest=image.digest,
                        squashfs=image.squashfs,
                        disk_mib=disk_mib,
                        make_disk=lambda target: disk.make(self._home.root / "disks", disk_mib, target),
                        volumes=volumes,
                        progress=progress,
                    )
                except (PerdureError, OSError, TimeoutError) as error:
                    _log.warning("no template with image %s: %s", image.name, error)
                    return base
                self._attached[key] = known
            return known
