"""The share of its kernel that a machine may have, with what serves it."""

from __future__ import annotations

import os

from perdure.errors import InvalidValue
from perdure.execution.machine import configuration
from perdure.linux import blockdevices
from perdure.linux.cgroup import Cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

_PAGE_BYTES, _MAP_BLOCKS, _MAP_HEAD = 4096, 12, 16  # docs/formats/memory-map.md: the count of blocks, from 12 to 16
_OVERHEAD_BYTES = 256 << 20  # of keeper, Firecracker, pager (64 MiB decompressed ahead) and collector
_PROCESSES_MAX = 512  # threads, too: 32 vCPUs, and one per processor of pager and collector
_CPUS_MAX = 1024


def limit(memory_bytes: int, cpus: float) -> None:
    """What the keeper and all that it starts may have, for a machine with so much memory; without a cgroup: nothing."""
    cgroup = Cgroup.own()
    if cgroup is not None:
        # the guest's memory, a capture of it in tmpfs, and the programs beside it
        most_bytes = 2 * memory_bytes + _OVERHEAD_BYTES
        cgroup.limit(memory_bytes=most_bytes, processes=_PROCESSES_MAX, cpus=cpus)


def limit_disk(pids: Sequence[int], files: Iterable[str], limits: dict[str, Any]) -> None:
    """What these processes may do with the disks that hold these files: as Firecracker's buckets (``limits``) say, also
    if it does it by itself.

    Without a disk or a controller for it: nothing. Keeper, pager and collector are not held: what they read
    and write is no more than the machine's memory, and a resume waits for it.
    """
    cgroup = Cgroup.own()
    if cgroup is None:
        return
    disks = {disk for file in files if (disk := blockdevices.disk_of(file))}
    apart = cgroup.part(pids) if disks else None
    if apart is not None:
        sizes = {name: int(bucket["size"]) for name, bucket in limits.items()}
        apart.limit_io(disks, bytes_per_s=sizes["bandwidth"], ops_per_s=sizes["ops"])


def cpus(params: dict[str, Any]) -> float:
    """``cpus``: the processors' time that the machine may use, 0 or absent: all that its own give it."""
    value = params.get("cpus") or 0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _CPUS_MAX:
        raise InvalidValue(f"the parameter 'cpus' must be a number from 0 to {_CPUS_MAX}, it is {value!r}")
    return float(value)


def memory_bytes(memory: dict[str, Any]) -> int:
    """How much memory a restore brings. Raises OSError."""
    if memory["kind"] == "file":
        return os.stat(configuration.text(memory, "path")).st_size
    with open(configuration.text(memory, "map"), "rb", buffering=0) as file:
        head = file.read(_MAP_HEAD)
    return int.from_bytes(head[_MAP_BLOCKS:_MAP_HEAD], "little") * _PAGE_BYTES
