"""What a node has besides sandboxes, snapshots and images, and where what is below its line is reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from perdure.model.values import Frozen

DEFAULT_VOLUME_MIB = 4096


class Network(Frozen, frozen=True, kw_only=True):
    """A network of a node, as ``fcrun network inspect`` shows it."""

    id: str
    name: str
    created: float
    subnet: str  # ADDRESS/PREFIX, IPv4
    internal: bool = False  # it leads nowhere but to its members
    isolated: bool = False  # its members do not reach each other
    labels: dict[str, str] = {}
    members: dict[str, str] = {}  # in answers: the names of sandboxes in it, with their addresses


class VolumeUser(Frozen, frozen=True, kw_only=True):
    """A sandbox that a volume belongs to, in any state."""

    id: str
    name: str
    read_only: bool = False
    attached: bool = False  # it runs, or is suspended with the volume mounted


class VolumeInfo(Frozen, frozen=True, kw_only=True):
    """A volume of a node, as ``fcrun volume`` shows it."""

    name: str
    created: float
    size_bytes: int  # what fits on it at most
    used_bytes: int = 0  # what it takes on the node's disk
    labels: dict[str, str] = {}
    anonymous: bool = False  # made for one sandbox, and removed with it by ``rm -v``
    path: str = ""  # of its ext4 file
    users: list[VolumeUser] = []


class NodePlace(Frozen, frozen=True, kw_only=True):
    """Which node something is at: by its id, which it keeps, and where it was when that was written down."""

    id: str
    host: str = ""  # its name
    address: str = ""  # there: as in FCRUN_HOST

    @property
    def said(self) -> str:
        """For people."""
        return f"node {self.id} ({self.host}: {self.address.removeprefix('unix://')})"


class NodeEvent(Frozen, frozen=True, kw_only=True):
    """One line of ``GET /v1/events``."""

    time: float
    kind: str  # sandbox.created, .started, .suspended, .resumed, .exited, .removed, image.added …
    sandbox_id: str = ""
    details: dict[str, Any] = {}


class TokenInfo(Frozen, frozen=True, kw_only=True):
    """A token of a node's API, as ``fcrun token ls`` shows it; never its secret."""

    id: str
    name: str
    scope: str  # all, own, read
    created: float
    expires: float | None = None


class AuditEntry(Frozen, frozen=True, kw_only=True):
    """One line of a node's audit (docs/formats/records.md)."""

    time: float
    request: str  # the same in the entries of one request
    phase: str  # "done"; of what answers while it goes on: "begun", then "ended"
    who: dict[str, Any] = {}  # uid and pid; token and name
    source: str = ""  # unix, or ADDRESS:PORT
    method: str = ""
    route: str = ""
    ref: str = ""  # what the request named
    sandboxes: list[str] = []  # ids that it had to do with
    status: int = 0
    code: str = ""  # of the error
    times: int = 1  # refused strangers are counted together when there are many
    lost: int = 0  # entries before this one that could not be written


class DiskUse(Frozen, frozen=True, kw_only=True):
    """What things of one kind take on a node's disk, in bytes that are allocated."""

    kind: str  # images, sandboxes, volumes, kept-disks, snapshots, templates, frames
    total: int  # how many
    active: int  # of them those that something needs now
    size_bytes: int
    reclaimable_bytes: int  # that would be free if what is not needed were deleted


@dataclass(frozen=True)
class LauncherAddress:
    """Where the launcher listens: a Unix socket path, or a TCP port that leads into the emulated host."""

    token: str = field(repr=False)
    unix_path: str = ""
    tcp_port: int = 0
    emulated: bool = False
    tcp_host: str = "127.0.0.1"
    process: int = 0  # that of the emulated host, where no kernel closes its connections when it ends

    def __str__(self) -> str:
        return self.unix_path or f"{self.tcp_host}:{self.tcp_port}"
