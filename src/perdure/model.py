"""Ids, frozen values and enums that more than one room uses. No I/O.

The Struct types are also the JSON of the HTTP APIs: same names, msgspec encodes and checks them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

DEFAULT_MEMORY_MIB = 512
DEFAULT_VCPUS = 1
DEFAULT_DISK_MIB = 4096
DEFAULT_VOLUME_MIB = 4096
GUEST_HTTP_PORT = 4750  # where guestd listens in the guest (127.0.0.1)
GUEST_VSOCK_PORT = 4751  # where guestd dials the host


def new_id() -> str:
    """A fresh id: 12 hex digits, like docker's short ids. Sandboxes, runs, waits and execs use it."""
    import secrets  # it brings hashes and random numbers, and no command line that only asks needs them

    return secrets.token_hex(6)


def is_id(text: str) -> bool:
    """Whether it has the shape of one."""
    return len(text) == 12 and all(digit in "0123456789abcdef" for digit in text)


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


class WakeReason(StrEnum):
    """What may wake a suspended sandbox by itself."""

    EXEC = "exec"  # exec, cp, attach
    CONNECT = "connect"  # a connection to one of its published ports


class RunState(StrEnum):
    """States of a run; the arrows are in ``runs.states``."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    RESUMING = "resuming"
    RECOVERING = "recovering"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Frozen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the wire values: immutable, keyword-only, unknown fields ignored (newer peers may send more)."""


def settle(*kinds: Any) -> None:
    """Have msgspec learn these types (none: all structs that are defined by now), before threads use them.

    It learns a type when it is first used, and does not keep other threads out meanwhile: two that are first at the
    same moment end the process (SIGSEGV).
    """
    for kind in kinds or _below(msgspec.Struct):
        msgspec.json.Decoder(kind)


def _below(kind: type) -> Iterator[type]:
    known: type
    for known in kind.__subclasses__():
        yield known
        yield from _below(known)


class CallsEndpoint(Frozen, frozen=True, kw_only=True):
    """Where a node sends a sandbox's calls, and in whose name."""

    url: str  # http://127.0.0.1:PORT/v1/calls or unix:/path.sock:/v1/calls
    run_id: str
    epoch: int
    token: str


class PublishedPort(Frozen, frozen=True, kw_only=True):
    """A port of a guest that the node listens for on its host."""

    guest_port: int
    host_port: int = 0  # 0 in a spec: the node finds one
    host_ip: str = ""  # empty: on every address
    protocol: str = "tcp"  # or udp


class HealthCheck(Frozen, frozen=True, kw_only=True):
    """How it is found out that a sandbox does its work. Zeros and an empty ``test``: as the image has it, or docker.

    test: ``["NONE"]``, ``["CMD", PROGRAM, …]`` or ``["CMD-SHELL", COMMAND]``.
    """

    test: list[str] = []
    interval_s: float = 0.0  # between probes; 30
    timeout_s: float = 0.0  # of one; 30
    retries: int = 0  # this many failures in a row: unhealthy; 3
    start_period_s: float = 0.0  # failures since the start do not count for so long; 0
    start_interval_s: float = 0.0  # between probes in that time; as ``interval_s``


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


class MountKind(StrEnum):
    VOLUME = "volume"
    FOLDER = "folder"  # of the client's machine: copied in before the first start
    TMPFS = "tmpfs"


class Mount(Frozen, frozen=True, kw_only=True):
    """What a sandbox has at a path besides its image."""

    kind: MountKind = MountKind.VOLUME
    target: str  # an absolute path in the sandbox
    source: str = ""  # the volume's name (none: a new one without a name), or the folder
    read_only: bool = False
    no_copy: bool = False  # an empty volume does not get what the image has at that path
    options: list[str] = []  # of a tmpfs: size=64m, mode=1777, noexec …


class Ulimit(Frozen, frozen=True, kw_only=True):
    """What each process of a sandbox may have of something (setrlimit(2)); -1: as much as it likes."""

    name: str  # nofile, nproc, core …
    soft: int
    hard: int


class SandboxSpec(Frozen, frozen=True, kw_only=True):
    """What a sandbox is made from. ``command`` empty: the image's ENTRYPOINT and CMD."""

    image: str
    command: list[str] = []
    entrypoint: list[str] | None = None
    env: dict[str, str] = {}
    cwd: str = ""
    user: str = ""
    hostname: str = ""
    name: str = ""
    labels: dict[str, str] = {}
    tty: bool = False
    stdin: bool = False  # keep stdin open (-i)
    vcpus: int = DEFAULT_VCPUS
    cpus: float = 0.0  # processor time that all of it may use, as of so many; 0: what its vCPUs use
    memory_mib: int = DEFAULT_MEMORY_MIB
    disk_mib: int = DEFAULT_DISK_MIB
    init_timeout_s: float = 0.0  # within which its guest must be ready; 0: 60
    auto_remove: bool = False
    restart: str = ""  # when it is started again: on-failure[:N], always, unless-stopped; empty: never
    suspend_after_s: float = 0.0  # put it to sleep when it was idle for so long; 0: never
    wake_on: tuple[WakeReason, ...] = (WakeReason.EXEC, WakeReason.CONNECT)  # what wakes it when it is suspended
    mounts: list[Mount] = []
    calls: CallsEndpoint | None = None
    networks: list[str] = []  # names; none: "bridge". "none" alone: no network at all
    aliases: list[str] = []  # other names of it in its networks
    ports: list[PublishedPort] = []
    publish_all: bool = False  # those that its image exposes, too, at numbers that the node finds
    egress: list[str] | None = None  # networks and host names that it may reach; None: all
    dns: list[str] = []  # name servers to ask; none: those of the host
    bytes_per_s: int = 0  # of its network, each way; 0: no limit
    packets_per_s: int = 0
    disk_bytes_per_s: int = 0  # of each of its disks, read and written; 0: no limit
    disk_ops_per_s: int = 0
    stop_signal: str = ""  # instead of the image's
    stop_timeout_s: float | None = None  # then KILL; None: 10, negative: never
    health: HealthCheck | None = None  # what is given in it counts instead of the image's
    read_only: bool = False  # its root, but for its mounts
    extra_hosts: list[str] = []  # NAME:ADDRESS each, for /etc/hosts
    dns_search: list[str] = []  # domains in which names without one are looked for
    dns_options: list[str] = []  # of its resolver: ndots:2 …
    ulimits: list[Ulimit] = []  # of the main process and of every exec
    groups: list[str] = []  # names or numbers that its user is in besides
    cap_add: list[str] = []  # capabilities(7), or ALL, that its root has in spite of ``cap_drop``
    cap_drop: list[str] = []  # those that it has not; without any it has all
    no_new_privileges: bool = False  # no setuid program gives its processes more
    pids_max: int = 0  # processes and threads at once; 0: as many as its kernel takes
    shm_bytes: int = 0  # what fits into /dev/shm; 0: half of its memory
    sysctls: dict[str, str] = {}  # of its own kernel
    init: bool = False  # docker's wish for a process that reaps: every sandbox has one
    log_driver: str = ""  # empty: json-file
    log_options: dict[str, str] = {}  # what ``logs --details`` shows


class ExecSpec(Frozen, frozen=True, kw_only=True):
    """One process to run in a sandbox."""

    command: list[str]
    env: dict[str, str] = {}
    cwd: str = ""
    user: str = ""
    tty: bool = False
    stdin: bool = False
    rows: int = 0
    columns: int = 0


class LogPosition(Frozen, frozen=True, kw_only=True):
    """The point of a context log that a snapshot is bound to."""

    run_id: str
    branch: int
    seq: int
    epoch: int


class ProcessMemory(Frozen, frozen=True, kw_only=True):
    """What one process in a guest has of its memory for itself."""

    pid: int
    name: str  # as the kernel has it: at most 15 bytes
    anonymous_kib: int


class MemoryUse(Frozen, frozen=True, kw_only=True):
    """Who had a guest's memory when it was captured, as the guest's kernel counts it (proc_meminfo(5))."""

    total_kib: int
    free_kib: int
    page_cache_kib: int  # Cached and Buffers, without Shmem
    shared_kib: int  # Shmem: tmpfs and shared memory
    anonymous_kib: int  # AnonPages: of all processes
    kernel_kib: int  # Slab, PageTables, KernelStack
    processes: list[ProcessMemory] = []  # the largest, the largest first


class SnapshotInfo(Frozen, frozen=True, kw_only=True):
    """A snapshot, as lists and answers show it. Sizes are of what it stored beyond its parent."""

    digest: str  # of the manifest: sha256:HEX
    sandbox_id: str
    created: float  # seconds since the epoch
    parent: str | None = None
    memory_bytes: int = 0  # compressed bytes stored
    disk_bytes: int = 0
    state_bytes: int = 0
    pause_s: float = 0.0  # how long the vCPUs stood still (to the capture's end)
    total_s: float = 0.0  # suspend requested to durable
    position: LogPosition | None = None

    @property
    def stored_bytes(self) -> int:
        return self.memory_bytes + self.disk_bytes + self.state_bytes


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
    stored_bytes: int = 0  # what it costs at rest, over all its own snapshots
    addresses: dict[str, str] = {}  # its own in each network that it is in
    ports: list[PublishedPort] = []  # those that the node listens for now, with the host's numbers
    health: Health | None = None  # while it runs, where there is a health check
    machine: dict[str, Any] = {}  # keeper and Firecracker pids, backend, restore times
    owner: str = ""  # the token of scope `own` that made it


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


class Recipe(Frozen, frozen=True, kw_only=True):
    """How the template of a workload is made: what to run, and when it counts as ready. All that is given must hold."""

    name: str
    spec: SandboxSpec
    ready_after_s: float = 0.0  # after its start
    ready_log: str = ""  # words that the main process writes
    ready_command: list[str] = []  # exits with 0 in the sandbox
    timeout_s: float = 300.0


class Fork(Frozen, frozen=True, kw_only=True):
    """What is each fork's own from the start."""

    name: str = ""  # empty: a name is found
    labels: dict[str, str] = {}
    auto_remove: bool = False
    calls: CallsEndpoint | None = None  # where its calls go; none: nobody answers them


class TemplateInfo(Frozen, frozen=True, kw_only=True):
    """The template of a workload, as ``fcrun template ls`` shows it."""

    name: str
    recipe: Recipe
    image_digest: str
    base: str  # name of the template (kernel, guestd, Firecracker, shape) that it was started from
    created: float
    stored_bytes: int = 0
    snapshot: str | None = None
    fresh: bool = True  # false: the image or the base has changed; the next run from it builds it again


class ImageInfo(Frozen, frozen=True, kw_only=True):
    """An image of a node, as ``fcrun images`` shows it."""

    name: str  # NAME:TAG, or NAME@sha256:HEX of one that was pulled by digest
    digest: str  # of its squashfs file: sha256:HEX
    size_bytes: int = 0
    created: float = 0.0
    pulled: str = ""  # digest that a registry has under its name
    labels: dict[str, str] = {}
    manifest: str = ""  # digest of its manifest: what a registry that it is pushed to calls it


class ImageStep(Frozen, frozen=True, kw_only=True):
    """One step by which an image was made, as ``fcrun history`` shows it."""

    created: str = ""  # RFC 3339
    created_by: str = ""
    comment: str = ""
    size_bytes: int = 0  # of the files' tar that it added
    layer: str = ""  # digest of that tar; empty: it added none


class DockerfileBuild(Frozen, frozen=True, kw_only=True):
    """What is to be built of a context."""

    names: list[str] = []  # of the image; none: it is found by its digest
    dockerfile: str = "Dockerfile"  # in the context
    arguments: dict[str, str] = {}
    labels: dict[str, str] = {}
    target: str = ""  # the stage to build; empty: the last one
    platform: str = ""  # such as linux/amd64; empty: this machine's
    pull: bool = False  # ask registries even for images that are here


class Pruned(Frozen, frozen=True, kw_only=True):
    """Images that were removed because nothing needs them."""

    untagged: list[str] = []  # names
    deleted: list[str] = []  # digests
    freed_bytes: int = 0


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


class Entry(Frozen, frozen=True, kw_only=True):
    """One entry of a context log. ``hash`` chains over the entry before (see docs/formats/context-log.md)."""

    run_id: str
    branch: int
    seq: int  # dense, from 1, along the branch
    epoch: int
    time: float
    kind: str
    key: str | None = None  # of the call that it belongs to: "LANE/ORDINAL"
    payload: Any = None  # canonical JSON value
    hash: str = ""


class OutputPiece(Frozen, frozen=True, kw_only=True):
    """A part of what a run's program wrote, in the order in which it came."""

    life: str  # of which log of it: another one begins at offset 0
    offset: int  # of its first byte in that log, stdout and stderr together
    stream: str  # stdout, stderr
    at: int  # of its first byte in what the process itself wrote to that stream; a restored machine goes back in it
    data: bytes

    @property
    def end(self) -> int:
        """The offset of the next byte."""
        return self.offset + len(self.data)


class RunOrigin(Frozen, frozen=True, kw_only=True):
    """Where a fork left another run."""

    run_id: str
    branch: int
    seq: int  # the last entry that both have


class RunInfo(Frozen, frozen=True, kw_only=True):
    """A run, as ``perdure status RUN`` and the API show it."""

    id: str
    state: RunState
    agent: str  # FILE:FUNCTION or the command
    created: float
    epoch: int = 0
    branch: int = 0
    image: str = ""
    durability: str = "snapshot"  # or "replay": a worker process, and no machine
    sandbox_id: str = ""
    input: Any = None
    result: Any = None
    error: dict[str, Any] | None = None
    seq: int = 0
    waits: list[dict[str, Any]] = []  # open waits: {id, kind, name, since, until, show}
    snapshot: SnapshotInfo | None = None
    turns_asked: int = 0  # model calls that a provider was asked
    turns_replayed: int = 0  # model calls answered again from the log
    recoveries: int = 0
    attempt: int = 1
    key: str | None = None
    queue: str | None = None
    tags: dict[str, str] = {}
    metadata: Any = None
    policy: dict[str, Any] = {}  # when its machine sleeps and is captured (docs/design/0024-programs-and-policy.md)
    suspends: int = 0
    suspended_s: float = 0.0
    stored_bytes: int = 0  # by all its snapshots together
    snapshots: list[dict[str, Any]] = []  # those that it can go on from: {digest, branch, seq, at, stored_bytes, keep}
    name: str = ""
    origin: RunOrigin | None = None  # of a fork
    parent: str = ""  # the run that started it
    children: list[str] = []  # runs that it started, oldest first
    ending: dict[str, Any] | None = None  # it is to end and cleans up: {to, error, until, told}


@dataclass(frozen=True)
class Call:
    """One request of a guest to the host (docs/design/0001-contracts.md, 1)."""

    run_id: str
    epoch: int
    lane: str
    ordinal: int
    method: str
    path: str
    headers: Mapping[str, str]  # lower-case names
    body: bytes
    offset: int = 0  # the guest already has this many bytes of the answer's body

    @property
    def key(self) -> str:
        return f"{self.lane}/{self.ordinal}"


@dataclass(frozen=True)
class Answer:
    """The host's answer. ``body`` begins at the call's offset; iterating it ends at the body's end."""

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]


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
