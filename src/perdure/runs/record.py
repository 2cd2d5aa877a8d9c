"""A run's summary: the value beside its log (``context.log.Head.value``), replaced with every transition."""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec

from perdure.context.log import Head
from perdure.errors import InvalidValue
from perdure.model import (
    DEFAULT_MEMORY_MIB,
    Budget,
    Frozen,
    NodePlace,
    Retry,
    RunInfo,
    RunOrigin,
    RunState,
    SnapshotInfo,
)
from perdure.runs import keys, pack
from perdure.runs.asking import LONGEST_S
from perdure.runs.fittings import Fittings
from perdure.runs.hook import RunHook
from perdure.runs.policy import Policy
from perdure.runs.queues import PRIORITY_MAX
from perdure.runs.states import TERMINAL
from perdure.runs.waits import Waits


class StartRequest(Frozen, frozen=True, kw_only=True):
    """Body of ``POST /v1/runs``. Either an agent (``source``: the text of ``file``, a NAME.py, which has ``function``),
    or a ``command``. ``key``: the same key starts a run only once (``runs.keys``)."""

    image: str = ""
    source: str = ""
    file: str = ""
    function: str = ""
    command: list[str] = msgspec.field(default_factory=list)
    input: Any = None
    key: str | None = None
    key_scope: str | None = None  # what the key is unique in: None is the agent's name
    key_ttl_s: float | None = None  # after it the key may start another run
    tags: dict[str, str] = msgspec.field(default_factory=dict)  # as they are now, like the metadata
    metadata: Any = None
    queue: str | None = None  # it begins when its turn comes (runs.queues)
    queue_key: str | None = None
    hooks: list[RunHook] = msgspec.field(default_factory=list)  # told of its states, beside the server's
    priority: int = 0  # in the queue: higher ones first
    name: str = ""
    env: dict[str, str] = msgspec.field(default_factory=dict)
    memory_mib: int = 0
    vcpus: int = 0
    disk_mib: int = 0
    on_divergence: Literal["fork", "fail", "live"] = "fork"
    policy: Policy = Policy()
    fittings: Fittings = Fittings()
    timeout_s: float | None = None  # of wall time, once it has left the queue
    active_timeout_s: float | None = None  # with a machine
    durability: Literal["snapshot", "replay"] = "snapshot"
    version: str = ""  # of the agent, as its author counts
    retry: dict[str, Retry] = msgspec.field(default_factory=dict)  # by kind of failure
    budget: Budget = Budget()  # of its models' turns; as it is now
    modules: dict[str, bytes] = msgspec.field(default_factory=dict)  # beside the file, by path
    pack: str | None = None  # instead: the digest of a pack that is in the log already

    @property
    def agent(self) -> str:
        """NAME.py:FUNCTION, or nothing."""
        return f"{self.file}:{self.function}" if self.file else ""

    @property
    def names(self) -> list[str]:
        """What settings may call what it runs by: the function's name and FILE.py:FUNCTION, or the command."""
        return [name for name in (self.function, self.agent, " ".join(self.command)) if name]

    @property
    def is_replay(self) -> bool:
        """It has no machine: a worker process runs the agent's function."""
        return self.durability == "replay"

    def _check_replay(self) -> None:
        hint = "Leave it out, or start the run with durability=snapshot."
        if self.command:
            raise InvalidValue("durability=replay is for agents: nothing is recorded of a command", hint=hint)
        if self.on_divergence == "live":
            message = "on_divergence=live is of microVMs: a function that does not go the way of its log fails"
            raise InvalidValue(message, hint=hint)
        for name, none in (("image", ""), ("memory_mib", 0), ("vcpus", 0), ("disk_mib", 0), ("fittings", Fittings())):
            if getattr(self, name) != none:
                raise InvalidValue(f"{name} is of microVMs, and durability=replay has none", hint=hint)

    def check(self) -> None:
        """Raises InvalidValue naming the field."""
        if bool(self.source) == bool(self.command):
            raise InvalidValue("a run is either an agent or a command", hint='Give "source", or "command".')
        if self.is_replay:
            self._check_replay()
        elif not self.image:
            hint = "Name one with --image, or @agent(image=...); `fcrun images` lists them."
            raise InvalidValue("the run names no image", hint=hint)
        if self.source and (not self.file.endswith(".py") or "/" in self.file or len(self.file) < 4):
            raise InvalidValue(f"not the name of a Python file: {self.file!r}", hint='"file" is NAME.py.')
        if self.source and not self.function.isidentifier():
            raise InvalidValue(f"not the name of a function: {self.function!r}", hint='"function" is the agent in it.')
        if (self.modules or self.pack) and not self.source:
            raise InvalidValue("modules are of agents, and this is a command", hint="Put them into its image.")
        pack.check_modules(self.modules, self.file)
        for name in ("memory_mib", "vcpus", "disk_mib"):
            if getattr(self, name) < 0:
                raise InvalidValue(f"{name} is negative: {getattr(self, name)}")
        self.policy.check()
        self.fittings.check()
        for name in ("timeout_s", "active_timeout_s"):
            limit_s = getattr(self, name)
            if limit_s is not None and not 0 < limit_s <= LONGEST_S:
                raise InvalidValue(f"{name} is {limit_s:g}", hint="It is a number of seconds above 0.")
        keys.check(self)
        for hook in self.hooks:
            hook.check()
        if not -PRIORITY_MAX <= self.priority <= PRIORITY_MAX:
            raise InvalidValue(f"priority is {self.priority}", hint=f"It is from {-PRIORITY_MAX} to {PRIORITY_MAX}.")
        self.budget.check()
        for kind, retry in self.retry.items():
            retry.check(kind)


class Kept(Frozen, frozen=True, kw_only=True):
    """A snapshot that the run can go on from."""

    digest: str
    branch: int  # its position in the log, with seq
    seq: int
    at: float  # seconds since the epoch
    stored_bytes: int = 0  # beyond its parent
    keep: bool = False  # it is not given up for newer ones
    run: str = ""  # whose log the position is of, where that is not the run's own: of a fork
    node: str = ""  # the id of the node that it is at; "": nobody wrote that down
    sandbox: str = ""  # that it is of, there
    store: str = ""  # the URL of a store where it is, too


class Ending(Frozen, frozen=True, kw_only=True):
    """The run is to end: after its program has cleaned up, or at ``until`` (seconds since 1970)."""

    to: Literal["cancelled", "failed"]
    error: dict[str, Any]
    until: float
    told: bool = False  # the program knows


class Overruled(Frozen, frozen=True, kw_only=True):
    """A lane whose program went another way, while its run goes on live on the same branch (``on_divergence=live``):
    what the log had of it from a call on does not count any more."""

    lane: str
    ordinal: int
    at: int  # seq of the entry that differed
    seq: int  # the first one after what does not count

    def covers(self, key: str, seq: int) -> bool:
        """Whether an entry of a call is one of those: of the lane, or of one that it made later."""
        lane, _, ordinal = key.rpartition("/")
        if seq >= self.seq:
            return False
        return int(ordinal) >= self.ordinal if lane == self.lane else lane.startswith(self.lane + ".") and seq > self.at


class Record(Frozen, frozen=True, kw_only=True):
    """Everything about a run that its driver needs after a restart of the server."""

    state: RunState
    request: StartRequest  # its source and its modules are in the blobs below
    source: str | None = None  # digest of the blob that has it
    pack: str | None = None  # digest of its pack (runs.pack)
    epoch: int = 0
    sandbox_id: str = ""
    node: NodePlace | None = None  # where that is
    released: bool = False  # after the end: its sandbox was removed
    waits: Waits = Waits()
    steps: list[str] = msgspec.field(
        default_factory=list
    )  # keys of steps begun on this machine and not ended: a capture now would put their effects beyond doubt's reach
    wake: bool = False  # a wait was completed since the suspend began
    thinking: list[str] = msgspec.field(default_factory=list)  # keys of model calls that its machine was suspended in
    unheard: list[str] = msgspec.field(default_factory=list)  # those that it was in, since it was woken from there
    snapshot: SnapshotInfo | None = None  # the newest
    snapshots: list[Kept] = msgspec.field(default_factory=list)  # that are still there, the oldest first
    stored_bytes: int = 0  # by all snapshots that were ever taken of it
    suspends: int = 0
    suspended_s: float = 0.0  # but for now
    suspended_thinking_s: float = 0.0  # of these: while a model thought
    suspended_at: float = 0.0  # the newest suspend; seconds since the epoch
    lost_epochs: list[int] = msgspec.field(
        default_factory=list
    )  # their machines were lost: what they began may have taken effect
    lost_upto: int = 0  # and those of all epochs up to this one, before a fork or rewind
    origin: RunOrigin | None = None  # it is a fork
    overruled: list[Overruled] = msgspec.field(default_factory=list)
    recoveries: int = 0
    failures: int = 0  # of the same kind, with no progress in between
    failure: str = ""  # its cause
    attempt: int = 1
    retry_at: float = 0.0  # when this attempt may begin
    dequeued: float = 0.0  # when it left the queue
    began: float = 0.0  # when this attempt left the queue
    active_s: float = 0.0  # how long it had a machine, before the one it has
    active_since: float = 0.0  # since when it has that; 0: it has none
    ended: float = 0.0  # when; 0: it has not, or nobody wrote that down
    ending: Ending | None = None
    parent: str = ""  # the run that started it, and waits for it
    is_alone: bool = False  # somebody took it back: it goes on also where its parent does not wait for it any more
    depth: int = 0  # how many runs are above it
    is_parent: bool = False  # it has started children: its entries say which
    result: Any = None
    error: dict[str, Any] | None = None
    output: str = ""  # after the end: the last that its program wrote
    output_life: str = ""  # where that stood (``model.OutputPiece``)
    output_end: int = 0
    taken_up: float = 0.0  # when it came here from another home
    made_by: str = ""  # the version of perdure that it was started with
    calls_version: int = 0  # of its SDK
    guest_key: str = ""  # what its programs have for a provider's key (runs.tokens); a fork has that of its origin

    @property
    def restorable(self) -> list[Kept]:
        """The snapshots that it can go on from, the oldest first."""
        if self.snapshots or self.snapshot is None:
            return self.snapshots
        one, at = self.snapshot, self.snapshot.position  # of a server that kept only the newest
        branch, seq = (at.branch, at.seq) if at else (0, 0)
        return [Kept(digest=one.digest, branch=branch, seq=seq, at=one.created, stored_bytes=one.stored_bytes)]

    def unshared(self, store: str, here: NodePlace | None) -> Kept | None:
        """The newest snapshot, where it is at the node ``here``, is to be in a store ("": in none), and is not."""
        is_here = self.node is not None and here is not None and here.id == self.node.id
        newest = self.restorable[-1:] if store and is_here else []
        return next((one for one in newest if one.store != store and one.node in ("", self.node_id)), None)

    @property
    def node_id(self) -> str:
        return "" if self.node is None else self.node.id

    @property
    def sleeps(self) -> bool:
        """Only a deadline, or somebody outside, can wake it."""
        return self.state is RunState.SUSPENDED and not self.wake and not self.thinking

    @property
    def is_bound(self) -> bool:
        """It is a child, and lives only as long as somebody waits for it."""
        return bool(self.parent) and not self.is_alone

    def is_lost(self, epoch: int) -> bool:
        """Whether what a machine of this epoch began may have taken effect unseen."""
        return epoch <= self.lost_upto or epoch in self.lost_epochs

    def counts(self, key: str | None, seq: int) -> bool:
        """Whether an entry of a call is still what its program did."""
        return key is None or not any(one.covers(key, seq) for one in self.overruled)

    def info(self, head: Head, children: list[str]) -> RunInfo:
        """The run as the API shows it."""
        now = time.time()
        asleep_s = max(now - self.suspended_at, 0.0) if self.state is RunState.SUSPENDED else 0.0
        suspended_s = self.suspended_s + asleep_s
        is_over = self.state in TERMINAL
        wall_s = 0.0 if is_over and not self.ended else max((self.ended or now) - head.created, 0.0)
        memory_mib = 0 if self.request.is_replay else self.request.memory_mib or DEFAULT_MEMORY_MIB
        return RunInfo(
            id=head.run_id,
            state=self.state,
            agent=self.request.agent or " ".join(self.request.command),
            created=head.created,
            epoch=head.epoch,
            branch=head.branch,
            image=self.request.image,
            durability=self.request.durability,
            sandbox_id=self.sandbox_id,
            node=self.node,
            input=self.request.input,
            result=self.result,
            error=self.error,
            seq=head.seq,
            waits=[wait.to_info() for wait in self.waits.open],
            snapshot=self.snapshot,
            turns_asked=head.turns_asked,
            turns_replayed=head.turns_replayed,
            spent=head.spent,
            budget=self.request.budget,
            recoveries=self.recoveries,
            attempt=self.attempt,
            key=self.request.key,
            queue=self.request.queue,
            tags=self.request.tags,
            metadata=self.request.metadata,
            policy=self.request.policy.to_json(),
            suspends=self.suspends,
            wall_s=wall_s,
            suspended_s=suspended_s,
            suspended_thinking_s=self.suspended_thinking_s + (asleep_s if self.thinking else 0.0),
            spared_memory_gib_s=suspended_s * memory_mib / 1024,
            stored_bytes=self.stored_bytes,
            snapshots=[msgspec.structs.asdict(one) for one in self.snapshots],
            name=self.request.name,
            parent=self.parent,
            children=children,
            origin=self.origin,
            ending=None if self.ending is None or is_over else msgspec.to_builtins(self.ending),
        )


def from_head(head: Head) -> Record:
    return msgspec.convert(head.value, Record)


def to_value(record: Record) -> Any:
    return msgspec.to_builtins(record)
