"""What a token that is not for everything may wish for in a sandbox: a row for each field of a spec.

A field without a row may only be as it is by itself (and a test names it).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

from perdure.errors import NoRights
from perdure.model import Mount, MountKind, PublishedPort, SandboxSpec

UNPRIVILEGED_PORT = 1024


def _harmless(_: Any) -> str:
    """It is about the sandbox alone."""
    return ""


def _never(_: Any) -> str:
    return "is for tokens of scope all"


def _networks(names: list[str]) -> str:
    """In the default one nobody reaches anybody; the others are somebody's."""
    return "" if set(names) <= {"bridge", "default", "none"} else "may be `bridge` or `none`"


def _ports(ports: list[PublishedPort]) -> str:
    """As any user of the node's machine could."""
    low = [port for port in ports if 0 < port.host_port < UNPRIVILEGED_PORT]
    return f"may not be below {UNPRIVILEGED_PORT} on the node" if low else ""


def _mounts(mounts: list[Mount]) -> str:
    """A volume with a name is everybody's; one without is the sandbox's own, and a folder is copied by the client."""
    named = [mount.source for mount in mounts if mount.kind is MountKind.VOLUME and mount.source]
    return f"may not be volumes with a name ({', '.join(named)})" if named else ""


def _dns(servers: list[str]) -> str:
    """The keeper asks them from the host's own network."""
    try:
        public = all(ipaddress.ip_address(server).is_global for server in servers)
    except ValueError:
        public = False
    return "" if public else "may be public addresses only"


_HARMLESS = (
    "image", "command", "entrypoint", "env", "cwd", "user", "hostname", "name", "labels", "tty", "stdin", "auto_remove",
    "init_timeout_s", "publish_all", "vcpus", "cpus", "memory_mib", "disk_mib",
    "aliases", "egress", "bytes_per_s", "packets_per_s", "disk_bytes_per_s", "disk_ops_per_s",
    "stop_signal", "stop_timeout_s", "health", "restart", "suspend_after_s", "wake_on",
    "read_only", "extra_hosts", "dns_search", "dns_options", "ulimits", "groups", "cap_add", "cap_drop",
    "no_new_privileges", "pids_max", "shm_bytes", "sysctls", "init", "log_driver", "log_options",
)  # fmt: skip

FIELDS: Mapping[str, Callable[[Any], str]] = {
    "calls": _never,  # they go where the node can go, its own socket for one
    "mounts": _mounts,
    "networks": _networks,
    "ports": _ports,
    "dns": _dns,
    **dict.fromkeys(_HARMLESS, _harmless),
}


def check(spec: SandboxSpec) -> None:
    """Raises NoRights that names the field."""
    for name, usual in zip(SandboxSpec.__struct_fields__, _usual(), strict=True):
        value = getattr(spec, name)
        if value != usual and (problem := FIELDS.get(name, _never)(value)):
            raise NoRights(f"{name} {problem}", hint="It needs a token of scope all.")


def _usual() -> list[Any]:
    """The fields of a spec that wishes for nothing."""
    nothing = SandboxSpec(image="")
    return [getattr(nothing, name) for name in SandboxSpec.__struct_fields__]
