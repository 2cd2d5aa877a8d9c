"""How else a run wishes to find its machine; the words are those of a sandbox's spec (``model.SandboxSpec``)."""

from __future__ import annotations

import msgspec

from perdure.errors import InvalidValue
from perdure.model import Frozen, Mount, MountKind


class Fittings(Frozen, frozen=True, kw_only=True):
    """All may be left out."""

    cpus: float = 0.0  # processor time that all of it may use, as of so many; 0: what its vCPUs use
    cwd: str = ""
    user: str = ""
    mounts: list[Mount] = msgspec.field(default_factory=list)  # volumes and file systems in memory
    networks: list[str] = msgspec.field(default_factory=list)
    egress: list[str] | None = None  # networks and host names that it may reach; None: all

    def of_child(self) -> Fittings:
        """Without the volumes that are written: the run that waits for the child has them, also while it sleeps."""
        kept = [m for m in self.mounts if m.kind is not MountKind.VOLUME or m.read_only or not m.source]
        return msgspec.structs.replace(self, mounts=kept)

    def check(self) -> None:
        """Raises InvalidValue naming the field."""
        if self.cpus < 0:
            raise InvalidValue(f"cpus is negative: {self.cpus}")
        for mount in self.mounts:
            if mount.kind is MountKind.FOLDER:
                hint = "A volume (`fcrun volume create`), or an image that has the files."
                raise InvalidValue(f"mounts: {mount.source}: a run shares no folders with this machine", hint=hint)
