"""What is asked of a sandbox: what it is made from, and what is to run in it."""

from __future__ import annotations

from enum import StrEnum

from perdure.model.calls import CallsEndpoint
from perdure.model.values import Frozen

DEFAULT_MEMORY_MIB = 512
DEFAULT_VCPUS = 1
DEFAULT_DISK_MIB = 4096


class WakeReason(StrEnum):
    """What may wake a suspended sandbox by itself."""

    EXEC = "exec"  # exec, cp, attach
    CONNECT = "connect"  # a connection to one of its published ports


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
