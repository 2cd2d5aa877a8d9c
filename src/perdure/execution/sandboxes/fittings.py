"""How else a sandbox finds its machine: names of hosts, limits, groups, kernel parameters, what its processes may.

What is about the whole machine are orders for guestd's tools (guest/fit.c), done at every start before the main process
runs. What is about processes goes with each of them (``limits`` of the channel's Exec).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import TypedDict

from perdure.errors import InvalidValue
from perdure.execution.sandboxes import mounts
from perdure.model import SandboxSpec, Ulimit

# asm-generic/resource.h, by the names that docker has for them
LIMITS: Mapping[str, int] = {
    "cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8,
    "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}  # fmt: skip
# linux/capability.h, by their numbers
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
UNLIMITED = -1
PIDS_MAX = 1 << 22  # PID_MAX_LIMIT of the kernel
OPEN_FILES_MAX = 1 << 20  # fs.nr_open: the guest's kernel refuses more
GROUPS_MAX = 32
LOG_DRIVERS = ("json-file", "local")
LOG_OPTIONS = ("labels", "labels-regex", "env", "env-regex")
_ALL = (1 << 64) - 1  # also those that a newer kernel has
_LIMIT_MAX = (1 << 63) - 1
_SYSCTL = re.compile(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_:-]+)+")
_HOST = re.compile(r"[^\s#:/\0]{1,253}")
_DOMAIN = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})")
_RESOLVER = re.compile(r"[a-z0-9][a-z0-9-]{0,30}(:[0-9]{1,6})?")
_GROUP = re.compile(r"[^\s:,\0]{1,64}")
# linux/mount.h
_READ_ONLY, _NOSUID, _NODEV, _NOATIME = 1, 2, 4, 1024
# of the image's root in docker: read-only with it; by the names that guest/mounts.c mounts them with
_IN_MEMORY = {"/run": "run", "/tmp": "tmp"}
_NO_DOMAIN = "."  # as docker has it: no search line at all


def check(spec: SandboxSpec) -> None:
    """Raises InvalidValue."""
    for entry in spec.extra_hosts:
        _host(entry)
    for domain in spec.dns_search:
        if domain != _NO_DOMAIN and not _DOMAIN.fullmatch(domain):
            raise InvalidValue(f"dns search {domain!r} is no domain", hint="Such as example.org.")
    for option in spec.dns_options:
        if not _RESOLVER.fullmatch(option):
            raise InvalidValue(f"dns option {option!r} is none of resolv.conf(5)", hint="Such as ndots:2.")
    for name, value in spec.sysctls.items():
        if not _SYSCTL.fullmatch(name) or len(name) > 200:
            raise InvalidValue(f"sysctl {name!r} is no name of a kernel parameter", hint="Such as net.core.somaxconn.")
        if not 0 < len(value) < 1024 or "\0" in value:
            raise InvalidValue(f"sysctl {name}: {value[:40]!r} is no value of one")
    for limit in spec.ulimits:
        _ulimit(limit)
    if len(spec.groups) > GROUPS_MAX:
        raise InvalidValue(f"{len(spec.groups)} groups: a process is in at most {GROUPS_MAX} besides its user's")
    for group in spec.groups:
        if not _GROUP.fullmatch(group) or (group.isdecimal() and int(group) >= 0xFFFF_FFFF):
            raise InvalidValue(f"group {group!r} is neither a name nor a number")
    for name in (*spec.cap_add, *spec.cap_drop):
        _capability(name)
    if not 0 <= spec.pids_max <= PIDS_MAX:
        raise InvalidValue(f"pids_max is {spec.pids_max}: it must be 0 (no limit) or a number up to {PIDS_MAX}")
    if not 0 <= spec.shm_bytes < 1 << 50:
        raise InvalidValue(f"shm_bytes is {spec.shm_bytes}: it must be 0 (half of the memory) or a number of bytes")
    _check_log(spec)


def _check_log(spec: SandboxSpec) -> None:
    if spec.log_driver not in ("", *LOG_DRIVERS):
        raise InvalidValue(
            f"log driver {spec.log_driver}: what a sandbox writes is kept by its node, and nowhere else",
            hint="json-file and local are what it is like; `fcrun logs -f` passes it on.",
        )
    for name, value in spec.log_options.items():
        if name not in LOG_OPTIONS:
            raise InvalidValue(
                f"log option {name}: a log is kept whole for as long as its sandbox is there",
                hint=f"There are {', '.join(LOG_OPTIONS)} (for `fcrun logs --details`).",
            )
        if name.endswith("-regex"):
            try:
                re.compile(value)
            except re.error as error:
                raise InvalidValue(f"log option {name}: {value!r} is no regular expression: {error}") from None


def _host(entry: str) -> str:
    """The line of /etc/hosts. Raises InvalidValue."""
    name, _, address = entry.partition(":")
    if not address or not _HOST.fullmatch(name):
        raise InvalidValue(f"bad format for add-host: {entry!r}", hint="Write NAME:ADDRESS, such as db:10.0.0.7.")
    if address == "host-gateway":
        raise InvalidValue(
            f"add-host {entry}: a sandbox does not reach the host that it runs on",
            hint="Let it reach the service by another address, which --egress may permit.",
        )
    try:
        found = ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
        if "%" in address:  # a zone, which may be any text
            raise ValueError(address)
        return f"{found}\t{name}\n"
    except ValueError:
        raise InvalidValue(f"invalid IP address in add-host: {address!r}", hint="Write NAME:ADDRESS.") from None


def _ulimit(limit: Ulimit) -> None:
    if limit.name not in LIMITS:
        raise InvalidValue(f"invalid ulimit type: {limit.name!r}", hint=f"There are {', '.join(LIMITS)}.")
    for value in (limit.soft, limit.hard):
        if not UNLIMITED <= value <= _LIMIT_MAX:
            raise InvalidValue(f"ulimit {limit.name}: {value} is no limit", hint="-1 is none.")
    if limit.hard != UNLIMITED and not 0 <= limit.soft <= limit.hard:
        raise InvalidValue(
            f"ulimit {limit.name}: soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}"
        )
    if limit.name == "nofile" and not 0 <= limit.hard <= OPEN_FILES_MAX:
        raise InvalidValue(f"ulimit nofile: the kernel takes at most {OPEN_FILES_MAX} open files")


def _capability(name: str) -> int:
    """As a mask, which of ALL has all bits. Raises InvalidValue."""
    short = name.upper().removeprefix("CAP_")
    if short == "ALL":
        return _ALL
    if short not in CAPABILITIES:
        raise InvalidValue(f"unknown capability {name!r}", hint="Such as NET_RAW, or ALL: see capabilities(7).")
    return 1 << CAPABILITIES.index(short)


def _allowed(spec: SandboxSpec) -> int:
    """The mask of what root has, as docker counts it, but from all capabilities instead of its own choice."""
    added, dropped = (reduce(or_, map(_capability, names), 0) for names in (spec.cap_add, spec.cap_drop))
    if added == _ALL and dropped != _ALL:
        return _ALL & ~dropped
    return _ALL & ~dropped | added


class Bounds(TypedDict):
    """What ``GuestSession.exec`` takes of them."""

    limits: Sequence[str]
    groups: Sequence[str]


def bounds(spec: SandboxSpec) -> Bounds:
    """Of each process of the sandbox."""
    limits = [f"{LIMITS[limit.name]} {limit.soft} {limit.hard}" for limit in spec.ulimits]
    if (allowed := _allowed(spec)) != _ALL:
        limits.append(f"capabilities {allowed:x}")
    if spec.no_new_privileges:
        limits.append("no-new-privileges")
    return {"limits": limits, "groups": spec.groups}


def steps(spec: SandboxSpec) -> list[tuple[str, ...]]:
    """The orders for guestd's tools as soon as the machine is the sandbox's."""
    found: list[tuple[str, ...]] = []
    if spec.extra_hosts:
        found.append(("append", "/etc/hosts", "".join(map(_host, spec.extra_hosts))))
    domains = [domain for domain in spec.dns_search if domain != _NO_DOMAIN]
    resolver = [f"search {' '.join(domains)}\n"] * bool(domains)
    resolver += [f"options {' '.join(spec.dns_options)}\n"] * bool(spec.dns_options)
    if resolver:
        found.append(("append", "/etc/resolv.conf", "".join(resolver)))
    if spec.shm_bytes:
        flags = _NOSUID | _NODEV
        found.append(("remount", "/dev/shm", str(flags), f"size={spec.shm_bytes},mode=1777"))
    if spec.pids_max:
        found.append(("pids", str(spec.pids_max)))
    found += [("sysctl", name, value) for name, value in spec.sysctls.items()]
    return found


def late_steps(spec: SandboxSpec, volumes: Iterable[str] = ()) -> list[tuple[str, ...]]:
    """The same, once all that it was given is on its disk, with those of ``mounts``. ``volumes``: that the image
    declares; they are there, as in docker, and are written whatever its root is."""
    volumes = mounts.places(spec, volumes)
    found: list[tuple[str, ...]] = [("mkdir", place, "755") for place in volumes]
    if spec.read_only:
        flags = str(_READ_ONLY | _NOSUID | _NODEV)
        found += [("remount", path, flags, "", name) for path, name in _IN_MEMORY.items()]  # not what is over them
    found += mounts.late_steps(spec, volumes)
    if spec.read_only:
        found.append(("remount", "/", str(_READ_ONLY | _NOATIME), ""))
    return found
