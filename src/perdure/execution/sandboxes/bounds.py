"""Between what the numbers of a sandbox's spec may be."""

from __future__ import annotations

import math
from typing import Any

from perdure.errors import InvalidValue
from perdure.model import SandboxSpec

MEMORY_MIB = (64, 65536)
VCPUS = (1, 32)
DISK_MIB = (64, 1 << 22)
# With less a guest comes up, but nobody waits for it.
DISK_BYTES_PER_S = (1 << 16, 1 << 50)
DISK_OPS_PER_S = (10, 1 << 40)


def check(spec: SandboxSpec) -> None:
    """Raises InvalidValue."""
    _within("memory_mib", spec.memory_mib, MEMORY_MIB)
    _within("vcpus", spec.vcpus, VCPUS)
    _within("disk_mib", spec.disk_mib, DISK_MIB)
    if spec.disk_bytes_per_s:
        _within("disk_bytes_per_s", spec.disk_bytes_per_s, DISK_BYTES_PER_S)
    if spec.disk_ops_per_s:
        _within("disk_ops_per_s", spec.disk_ops_per_s, DISK_OPS_PER_S)
    if not math.isfinite(spec.init_timeout_s) or spec.init_timeout_s < 0:
        raise InvalidValue(f"init_timeout_s is {spec.init_timeout_s}: it must be 0 (60) or a number of seconds")
    if not math.isfinite(spec.suspend_after_s) or spec.suspend_after_s < 0:
        raise InvalidValue(f"suspend_after_s is {spec.suspend_after_s}: it must be 0 (never) or a number of seconds")
    if not 0 <= spec.cpus <= spec.vcpus:
        raise InvalidValue(f"cpus is {spec.cpus:g}: it must be from 0 to the vCPUs, {spec.vcpus}")


def of_disks(spec: SandboxSpec) -> dict[str, Any]:
    """The parameter ``disk`` of a restore, where there is a limit (docs/design/0001-contracts.md, 3)."""
    if not spec.disk_bytes_per_s and not spec.disk_ops_per_s:
        return {}
    return {"disk": {"bytes_per_s": spec.disk_bytes_per_s, "ops_per_s": spec.disk_ops_per_s}}


def _within(what: str, value: int, bounds: tuple[int, int]) -> None:
    low, high = bounds
    if not low <= value <= high:
        raise InvalidValue(f"{what} is {value}: it must be from {low} to {high}")
