"""How a sandbox is: its state, what it uses, what is in it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from perdure.model.snapshots import HeldSnapshot, SnapshotInfo
from perdure.model.specs import PublishedPort, SandboxSpec
from perdure.model.values import Frozen


class SandboxState(StrEnum):
    """States of a sandbox; the arrows are in ``execution.sandboxes.states``."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"  # its machine is there, and none of its processors runs
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    RESUMING = "resuming"
    EXITED = "exited"  # its main process ended, it was stopped, or its machine died (``cause`` says which)
    REMOVING = "removing"


class Probe(Frozen, frozen=True, kw_only=True):
    """One look at a sandbox's health."""

    started: float
    ended: float
    exit_status: int  # -1: it took too long
    output: str = ""  # the end of it


class Health(Frozen, frozen=True, kw_only=True):
    """What the probes of a running sandbox say."""

    status: str  # starting, healthy or unhealthy
    failing_streak: int = 0
    probes: list[Probe] = []  # the newest, oldest first


class SandboxInfo(Frozen, frozen=True, kw_only=True):
    """A sandbox, as ``fcrun inspect`` and ``ps`` show it."""

    id: str
    name: str
    spec: SandboxSpec
    state: SandboxState
    created: float
    started: float | None = None
    finished: float | None = None
    exit_status: int | None = None
    cause: str = ""  # why it is in EXITED: "exit", "stopped", "killed", "machine-died", "keeper-died", "host-lost" …
    detail: str = ""
    image_digest: str = ""
    restarts: int = 0  # how often in a row it was started again (``spec.restart``)
    snapshot: SnapshotInfo | None = None  # the newest
    held: list[HeldSnapshot] = []  # its snapshots, the oldest first
    stored_bytes: int = 0  # what it costs at rest, over all its own snapshots
    addresses: dict[str, str] = {}  # its own in each network that it is in
    ports: list[PublishedPort] = []  # those that the node listens for now, with the host's numbers
    health: Health | None = None  # while it runs, where there is a health check
    machine: dict[str, Any] = {}  # keeper and Firecracker pids, backend, restore times
    owner: str = ""  # the token of scope `own` that made it
    epoch: int | None = None  # of the run that its calls are made for now; None: nobody hears them


class SandboxUsage(Frozen, frozen=True, kw_only=True):
    """What a sandbox uses at one moment. Counters (seconds of processor time, bytes) only grow while it runs; all are 0
    where no machine is there."""

    id: str
    name: str
    state: SandboxState
    time: float  # when it was measured
    vcpus: int = 0
    cpu_s: float = 0.0  # of the machine: Firecracker and what serves it, below the line
    memory_bytes: int = 0  # as the guest counts it, without what it could give back
    memory_limit_bytes: int = 0
    host_bytes: int = 0  # what the machine has of the memory below the line
    received_bytes: int = 0  # by network
    sent_bytes: int = 0
    read_bytes: int = 0  # of its disks
    written_bytes: int = 0
    threads: int = 0  # of the workload
    stored_bytes: int = 0  # what it costs at rest


class SandboxProcess(Frozen, frozen=True, kw_only=True):
    """A process in a sandbox, by the numbers of its guest (proc_pid_stat(5))."""

    pid: int
    ppid: int
    uid: int
    user: str
    state: str  # R, S, D …
    threads: int
    nice: int
    group: int
    session: int
    tty: str  # "pts/0"; "?" where it has none
    cpu_s: float
    started: float  # seconds since the epoch
    elapsed_s: float
    virtual_bytes: int
    resident_bytes: int
    memory_percent: float
    name: str
    command: str  # with its arguments; "[name]" where it has none


class Change(Frozen, frozen=True, kw_only=True):
    """One line of ``fcrun diff``."""

    kind: str  # A added, C changed, D deleted
    path: str


class FileChange(Change, frozen=True, kw_only=True):
    """The same with what it is now; of what was deleted nothing."""

    type: str = ""  # file, folder, link or other
    mode: int = 0  # permission bits
    size_bytes: int = 0
    digest: str = ""  # sha256:HEX of a file's content, or of where a link leads
