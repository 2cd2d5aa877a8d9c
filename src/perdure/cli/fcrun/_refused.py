"""Options of ``docker run`` for what a sandbox cannot have, or has always: each says why, and what to do instead."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

from perdure.errors import InvalidValue


class Refusal(NamedTuple):
    """Why there is none of it, what to do, and what values are as it is anyway."""

    options: str
    why: str
    instead: str
    fine: tuple[str, ...] = ()
    takes_value: bool = True


_MAY_ALL = "a sandbox is a machine with a kernel of its own, in which root may do everything"
_DEVICES = "a microVM has no devices of the host"
_ALONE = "a sandbox shares no kernel, so there is nothing to share or to set apart"
_CPUS = "a sandbox has processors of its own"
_MEMORY = "a sandbox has memory of its own, as much as --memory says, and no swap"
_DISK = "a sandbox has no devices of the host, and the limits of its own disks are of each of them"
_IPV4 = "sandboxes have IPv4 only: inside all have the same address, behind NAT, so that a snapshot fits everywhere"
_ADDRESS = "a sandbox's addresses are found for it"
_LEAVE = "Leave it out."

PRIVILEGED = Refusal("--privileged", _MAY_ALL, _LEAVE, takes_value=False)
IPV6 = Refusal("--ipv6", _IPV4, _LEAVE, takes_value=False)  # of ``network create``
REFUSED = (
    PRIVILEGED,
    Refusal(
        "--device", _DEVICES, "Bring files with -v or cp; a disk that outlives the sandbox is a volume: -v NAME:/PATH."
    ),
    Refusal("--device-cgroup-rule", _DEVICES, _LEAVE),
    Refusal("--gpus", f"{_DEVICES}, and Firecracker passes no GPU through", "Reach a model by the network instead."),
    Refusal("--device-read-bps --device-write-bps", _DISK, "Bytes a second: --disk-bandwidth 10m."),
    Refusal("--device-read-iops --device-write-iops", _DISK, "Reads and writes a second: --disk-iops 1000."),
    Refusal(
        "--blkio-weight --blkio-weight-device",
        "all sandboxes have the same weight",
        "Limit them: --disk-bandwidth 10m, --disk-iops 1000.",
    ),
    Refusal("--pid", _ALONE, "`fcrun top` shows its processes, `fcrun exec` runs another one in it."),
    Refusal("--ipc", _ALONE, "/dev/shm is the sandbox's own: --shm-size.", ("private", "none", "shareable")),
    Refusal("--uts", _ALONE, "Its host name is its own: -h NAME."),
    Refusal("--userns", _ALONE, f"{_LEAVE} Its users are none of the host's."),
    Refusal("--cgroupns", _ALONE, _LEAVE, ("private",)),
    Refusal("--cgroup-parent", "its machine's cgroup is made by the node", "Limit it by --cpus and --memory."),
    Refusal("--runtime", "every sandbox is a Firecracker microVM", _LEAVE, ("firecracker",)),
    Refusal("--isolation", "every sandbox is a Firecracker microVM", _LEAVE, ("default",)),
    Refusal(
        "-c --cpu-shares --cpu-period --cpu-quota --cpu-rt-period --cpu-rt-runtime --cpuset-cpus --cpuset-mems",
        _CPUS,
        "Say how many, also parts of one: --cpus 1.5.",
    ),
    Refusal(
        "--memory-reservation --memory-swappiness --kernel-memory --oom-score-adj",
        _MEMORY,
        "Use --memory.",
    ),
    Refusal("--oom-kill-disable", _MEMORY, "Use --memory.", takes_value=False),
    Refusal("--storage-opt", "a sandbox's disk is made for it", "Say how large: --disk 10g."),
    Refusal("--ip6", _IPV4, _LEAVE),
    Refusal("--ip --link-local-ip --mac-address", _ADDRESS, "Members of a network know each other by name."),
    Refusal("--link", "sandboxes know each other by name in networks", "`fcrun network create NAME`; --network NAME."),
    Refusal("--domainname", "a sandbox has a host name only", "Give it a full one: -h NAME.EXAMPLE.ORG."),
    Refusal("--expose", "nothing stands between a sandbox's ports and its networks", "To reach one from the host: -p."),
    Refusal("--volumes-from", "a volume is written by one sandbox at a time", "Mount it by name: -v NAME:/PATH[:ro]."),
    Refusal("--volume-driver", "volumes are ext4 disks of the node", _LEAVE, ("local",)),
    Refusal("--annotation", "there is no OCI runtime to read it", "Use a label: -l NAME=VALUE."),
    Refusal(
        "-a --attach",
        "which streams are joined follows from -i, -t and -d",
        "Redirect what is not wanted: 2>/dev/null.",
    ),
)


class _Refuse(argparse.Action):
    """Raises what the option is refused with."""

    def __call__(
        self, parser: Any, namespace: Any, values: str | Sequence[Any] | None, option: str | None = None
    ) -> None:
        refusal = next(one for one in self.const if option in one.options.split())
        if not isinstance(values, str) or values not in refusal.fine:
            raise InvalidValue(f"there is no {option}: {refusal.why}", hint=refusal.instead)


def add_refused(parser: argparse.ArgumentParser, refused: Sequence[Refusal] = REFUSED) -> None:
    """They are known, and not shown. Two arguments for all of them: each costs every start of the command."""
    for takes_value in (True, False):
        options = [option for one in refused if one.takes_value is takes_value for option in one.options.split()]
        if options:
            parser.add_argument(
                *options,
                action=_Refuse,
                const=refused,
                dest="refused",
                nargs=None if takes_value else 0,
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )
