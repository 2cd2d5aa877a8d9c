"""Sandboxes as docker's formats and filters name what there is of them, so that what people type goes on working.

The fields are those of ``docker ps --format`` and ``docker inspect``, as far as a sandbox has such a thing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from perdure.cli.fcrun import _format, _network
from perdure.cli.fcrun._format import Open

if TYPE_CHECKING:
    from perdure.model import Mount, PublishedPort, SandboxInfo

COMMAND_LENGTH = 20
_NEVER = "0001-01-01T00:00:00Z"  # Go's zero time, as docker writes what has not happened


def listed(info: SandboxInfo, *, short: bool, image_bytes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """A row of ``ps``. image_bytes: sizes of images by digest."""
    command = " ".join([*(info.spec.entrypoint or []), *info.spec.command])
    if short and len(command) > COMMAND_LENGTH:
        command = command[: COMMAND_LENGTH - 1] + "…"
    virtual = info.stored_bytes + (image_bytes or {}).get(info.image_digest, 0)
    labels = info.spec.labels
    return {
        "ID": info.id,
        "Image": info.spec.image,
        "Command": f'"{command}"',
        "CreatedAt": stamp(info.created),
        "RunningFor": f"{_format.ago(info.created)} ago",
        "Status": status(info),
        "State": str(info.state),
        "Stored": _format.size(info.stored_bytes) if info.stored_bytes else "",
        "Size": f"{_format.size(info.stored_bytes)} (virtual {_format.size(virtual)})",
        "Ports": _network.listed(info.ports),
        "Networks": ",".join(info.addresses),
        "Mounts": ",".join(mount.source or mount.kind for mount in info.spec.mounts if mount.kind != "tmpfs"),
        "LocalVolumes": str(sum(mount.kind == "volume" for mount in info.spec.mounts)),
        "Names": info.name,
        "Labels": ",".join(f"{name}={value}" for name, value in labels.items()),
        "Label": lambda name: labels.get(str(name), ""),
    }


def status(info: SandboxInfo) -> str:
    """In words, since when."""
    if info.state == "running":
        return f"Up {_format.ago(info.started)}{_health(info)}"
    if info.state == "paused":
        return f"Up {_format.ago(info.started)} (Paused)"
    if info.state == "suspended" and info.snapshot is not None:
        return f"Suspended {_format.ago(info.snapshot.created)} ago"
    if info.state == "exited":
        why = str(info.exit_status) if info.exit_status is not None else info.cause
        return f"Exited ({why}) {_format.ago(info.finished)} ago"
    return str(info.state).capitalize()


def _health(info: SandboxInfo) -> str:
    if info.health is None:
        return ""
    return " (health: starting)" if info.health.status == "starting" else f" ({info.health.status})"


def stamp(moment: float) -> str:
    """2030-01-31 12:00:00 +0100 CET, as docker's lists have it."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(moment))


def rfc3339(moment: float | None) -> str:
    if moment is None:
        return _NEVER
    nanoseconds = int(moment * 1e9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(nanoseconds // 10**9))}.{nanoseconds % 10**9:09}Z"


def _mounted(mount: Mount) -> dict[str, Any]:
    """As docker has it; a folder that was copied in is a bind there."""
    named = {"Name": mount.source, "Driver": "local"} if mount.kind == "volume" else {}
    return {
        "Type": "bind" if mount.kind == "folder" else str(mount.kind),
        **named,
        "Source": mount.source,
        "Destination": mount.target,
        "Mode": "ro" if mount.read_only else "",
        "RW": not mount.read_only,
        "Propagation": "",
    }


def inspected(info: SandboxInfo, image: Mapping[str, Any]) -> dict[str, Any]:
    """docker's part of ``inspect``. ``image``: the configuration of its image, as docker has it."""
    spec = info.spec
    argv = [*(spec.entrypoint or []), *spec.command]
    running = info.state == "running"
    policy, _, most = spec.restart.partition(":")
    return {
        "Id": info.id,
        "Created": rfc3339(info.created),
        "Path": argv[0] if argv else "",
        "Args": argv[1:],
        "State": {
            "Status": str(info.state),
            "Running": running,
            "Paused": info.state == "paused",
            "Suspended": info.state == "suspended",
            "Restarting": False,
            "OOMKilled": False,
            "Dead": False,
            "Pid": int(info.machine.get("firecracker_pid") or 0) if running else 0,
            "ExitCode": info.exit_status if info.exit_status is not None else 0,
            "Error": info.detail,
            "StartedAt": rfc3339(info.started),
            "FinishedAt": rfc3339(info.finished),
        },
        "Image": info.image_digest,
        "Name": f"/{info.name}",
        "RestartCount": info.restarts,
        "Driver": "firecracker",
        "Platform": "linux",
        "Mounts": [_mounted(mount) for mount in spec.mounts],
        "HostConfig": {
            "Memory": spec.memory_mib << 20,
            "NanoCpus": spec.vcpus * 10**9,
            "IOMaximumBandwidth": spec.disk_bytes_per_s,
            "IOMaximumIOps": spec.disk_ops_per_s,
            "AutoRemove": spec.auto_remove,
            "NetworkMode": (spec.networks or ["bridge"])[0],
            "PortBindings": _bindings(spec.ports),
            "RestartPolicy": {"Name": policy or "no", "MaximumRetryCount": int(most or 0)},
            "ReadonlyRootfs": spec.read_only,
            "Dns": spec.dns,
            "DnsSearch": spec.dns_search,
            "DnsOptions": spec.dns_options,
            "ExtraHosts": spec.extra_hosts or None,
            "Ulimits": [{"Name": one.name, "Hard": one.hard, "Soft": one.soft} for one in spec.ulimits],
            "GroupAdd": spec.groups or None,
            "ShmSize": spec.shm_bytes or spec.memory_mib << 19,  # without a size a tmpfs takes half of the memory
            "Sysctls": Open(spec.sysctls),
            "Init": spec.init or None,
            "LogConfig": {"Type": spec.log_driver or "json-file", "Config": Open(spec.log_options)},
            "Privileged": False,
            "CapAdd": spec.cap_add or None,
            "CapDrop": spec.cap_drop or None,
            "SecurityOpt": ["no-new-privileges"] if spec.no_new_privileges else None,
            "PidsLimit": spec.pids_max or None,
        },
        "Config": {
            "Hostname": spec.hostname or info.id,
            "User": spec.user,
            "Tty": spec.tty,
            "OpenStdin": spec.stdin,
            "Env": [f"{name}={value}" for name, value in spec.env.items()],
            "Cmd": spec.command,
            "Image": spec.image,
            "WorkingDir": spec.cwd,
            "Entrypoint": spec.entrypoint,
            "Labels": Open(spec.labels),
            "StopSignal": spec.stop_signal or image.get("StopSignal", ""),
            "StopTimeout": None if spec.stop_timeout_s is None else int(spec.stop_timeout_s),
        },
        "NetworkSettings": {
            "IPAddress": next(iter(info.addresses.values()), ""),
            "Ports": _bindings(info.ports),
            "Networks": Open({name: {"IPAddress": address} for name, address in info.addresses.items()}),
        },
    }


def _bindings(ports: Iterable[PublishedPort]) -> Open:
    """As docker has them: by what is in the sandbox, where on the host it can be reached."""
    found = Open()
    for port in ports:
        places = [port.host_ip] if port.host_ip else ["0.0.0.0", "::"]
        bound = found.setdefault(f"{port.guest_port}/{port.protocol}", [])
        bound += [{"HostIp": place, "HostPort": str(port.host_port)} for place in places]
    return found
