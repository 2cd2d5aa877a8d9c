"""Ids, frozen values and enums that more than one room uses. No I/O. Others import them from here.

The Struct types are also the JSON of the HTTP APIs: same names, msgspec encodes and checks them.
"""

from __future__ import annotations

from perdure.model.calls import (
    GUEST_HTTP_PORT,
    GUEST_VSOCK_PORT,
    Answer,
    Call,
    CallsEndpoint,
    SecretUse,
)
from perdure.model.images import (
    DockerfileBuild,
    ImageInfo,
    ImageStep,
    Pruned,
)
from perdure.model.nodes import (
    DEFAULT_VOLUME_MIB,
    AuditEntry,
    DiskUse,
    LauncherAddress,
    Network,
    NodeEvent,
    NodePlace,
    TokenInfo,
    VolumeInfo,
    VolumeUser,
)
from perdure.model.retries import (
    ANY_FAILURE,
    FAILURES,
    Retry,
)
from perdure.model.runs import (
    Entry,
    OutputPiece,
    RunInfo,
    RunOrigin,
    RunState,
    Signalled,
)
from perdure.model.sandboxes import (
    Change,
    FileChange,
    Health,
    Probe,
    SandboxInfo,
    SandboxProcess,
    SandboxState,
    SandboxUsage,
)
from perdure.model.sessions import SessionInfo
from perdure.model.snapshots import (
    HeldSnapshot,
    LogPosition,
    MemoryUse,
    ProcessMemory,
    SnapshotInfo,
    TemplateInfo,
)
from perdure.model.specs import (
    DEFAULT_DISK_MIB,
    DEFAULT_MEMORY_MIB,
    DEFAULT_VCPUS,
    ExecSpec,
    Fork,
    HealthCheck,
    Mount,
    MountKind,
    PublishedPort,
    Recipe,
    SandboxSpec,
    Ulimit,
    WakeReason,
)
from perdure.model.spending import Budget, JointBudget, JointSpent, Spent
from perdure.model.values import (
    Frozen,
    is_id,
    new_id,
    settle,
)

__all__ = [
    # values
    "new_id",
    "is_id",
    "Frozen",
    "settle",
    # calls
    "GUEST_HTTP_PORT",
    "GUEST_VSOCK_PORT",
    "CallsEndpoint",
    "Call",
    "Answer",
    "SecretUse",
    # spending
    "Budget",
    "JointBudget",
    "JointSpent",
    "Spent",
    # specs
    "DEFAULT_MEMORY_MIB",
    "DEFAULT_VCPUS",
    "DEFAULT_DISK_MIB",
    "WakeReason",
    "PublishedPort",
    "HealthCheck",
    "HeldSnapshot",
    "MountKind",
    "Mount",
    "Ulimit",
    "SandboxSpec",
    "ExecSpec",
    "Recipe",
    "Fork",
    # sandboxes
    "SandboxState",
    "Probe",
    "Health",
    "SandboxInfo",
    "SandboxUsage",
    "SandboxProcess",
    "Change",
    "FileChange",
    # snapshots
    "LogPosition",
    "ProcessMemory",
    "MemoryUse",
    "SnapshotInfo",
    "TemplateInfo",
    # images
    "ImageInfo",
    "ImageStep",
    "DockerfileBuild",
    "Pruned",
    # nodes
    "DEFAULT_VOLUME_MIB",
    "Network",
    "VolumeUser",
    "VolumeInfo",
    "NodeEvent",
    "NodePlace",
    "TokenInfo",
    "AuditEntry",
    "DiskUse",
    "LauncherAddress",
    # retries
    "FAILURES",
    "ANY_FAILURE",
    "Retry",
    # sessions
    "SessionInfo",
    # runs
    "RunState",
    "Entry",
    "OutputPiece",
    "RunOrigin",
    "RunInfo",
    "Signalled",
]
