"""What runs need from outside: machines, and answers of models. The composition root (``server``) joins them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import msgspec

from perdure.errors import PerdureError
from perdure.formats.scriptblock import Needs
from perdure.model import (
    Answer,
    Budget,
    Call,
    CallsEndpoint,
    FileChange,
    Frozen,
    HeldSnapshot,
    JointBudget,
    LogPosition,
    NodeEvent,
    NodePlace,
    OutputPiece,
    SandboxInfo,
    SecretUse,
    SnapshotInfo,
)
from perdure.runs.fittings import Fittings
from perdure.runs.pack import Part, Python

NO_BUDGET = Budget()
Progress = Callable[[str, int, int], None]  # what is done, how much of it, and the total (0: unknown)


class MachinePlan(Frozen, frozen=True, kw_only=True):
    """What a run's machine is made from. An agent: ``agent`` and ``source``; any other program: ``command``."""

    run_id: str
    image: str
    agent: str = ""  # NAME.py:FUNCTION
    source: bytes = b""  # the text of NAME.py
    modules: dict[str, bytes] = msgspec.field(default_factory=dict)  # beside it, by path
    wheels: list[Part] = msgspec.field(default_factory=list)  # of the packages that it requires
    python: Python | None = None  # that those are for
    command: list[str] = msgspec.field(default_factory=list)
    env: dict[str, str] = msgspec.field(default_factory=dict)
    memory_mib: int = 0  # 0: the default
    vcpus: int = 0
    disk_mib: int = 0
    fittings: Fittings = Fittings()


class Sandbox(Frozen, frozen=True, kw_only=True):
    """A sandbox that is of a run."""

    id: str
    run_id: str
    epoch: int | None  # that its calls are made in; None: nobody hears them
    snapshots: list[HeldSnapshot] = msgspec.field(default_factory=list)  # the oldest first


class Machines(Protocol):
    """The execution half, as far as a run needs it. Errors are those of ``perdure.errors``; all may take seconds."""

    @property
    def node(self) -> NodePlace | None:
        """Where they are: what is at another node is out of reach. None: at none, there is nothing to find again."""
        ...

    async def start(self, plan: MachinePlan, calls: CallsEndpoint) -> str:
        """Make a sandbox, put the agent's files into it and start it; returns its id. A sandbox that was left of an
        earlier start of the same run is removed first, so that one run never has two machines."""
        ...

    async def inspect(self, sandbox_id: str) -> SandboxInfo:
        """NotFound: there is no such sandbox (any more)."""
        ...

    async def suspend(self, sandbox_id: str, position: LogPosition) -> SnapshotInfo | None:
        """Capture and end the machine. On any error it goes on running. None: there is nothing to keep of it, as its
        run is in its log alone (a worker of the replay road); it is started again instead of resumed."""
        ...

    async def checkpoint(self, sandbox_id: str, position: LogPosition) -> SnapshotInfo:
        """Capture the machine, which goes on; on any error, too."""
        ...

    async def forget(self, sandbox_id: str, snapshot: str) -> None:
        """Give up a snapshot of the sandbox (its digest). NotFound; Conflict: it is needed."""
        ...

    async def resume(self, sandbox_id: str, snapshot: str, calls: CallsEndpoint) -> None:
        """Restore the snapshot (its digest), whatever the sandbox does now; its calls then carry the new epoch."""
        ...

    async def fork(self, run_id: str, snapshot: str, calls: CallsEndpoint) -> str:
        """Make another sandbox, of this run, which goes on from a snapshot of whatever sandbox; returns its id. What
        was left of an earlier start of the same run is removed first."""
        ...

    async def push(self, snapshot: str, store: str) -> None:
        """Bring a snapshot to a store beyond this node, at a URL; what is there already is skipped. NotFound: it is not
        here (any more)."""
        ...

    async def pull(self, snapshot: str, store: str) -> None:
        """The other way; what of it is only needed later may come later. It stays until ``fork`` has made a sandbox of
        it."""
        ...

    async def stop(self, sandbox_id: str, timeout_s: float) -> None:
        """Send the program its stop signal, after ``timeout_s`` SIGKILL; returns when it has ended."""
        ...

    async def changes(self, sandbox_id: str) -> list[FileChange]:
        """What its files differ in from its image, by path. NotFound; Conflict: it is just moving."""
        ...

    async def file(self, sandbox_id: str, path: str) -> bytes:
        """What is in a file that it changed since its image. NotFound; InvalidValue: it is large, or no file."""
        ...

    async def output(self, sandbox_id: str, tail_bytes: int) -> bytes:
        """The end of what the program wrote."""
        ...

    def printed(
        self, sandbox_id: str, life: str = "", offset: int = 0, *, follow: bool = False, tail: int | None = None
    ) -> AsyncGenerator[OutputPiece]:
        """What the program wrote, from a byte of that life on (all where its log is another one now), or its last
        ``tail`` lines; with ``follow`` until its machine ends. NotFound: its log is gone."""
        ...

    async def remove(self, run_id: str) -> None:
        """Remove whatever sandbox the run has, also a running one. Nothing there: nothing to do."""
        ...

    async def of_runs(self) -> list[Sandbox]:
        """All that are of runs."""
        ...

    async def discard(self, sandbox_id: str) -> None:
        """Remove this one, whatever it does. NotFound."""
        ...

    def events(self) -> AsyncIterator[NodeEvent]:
        """What happens to sandboxes, for ever. Each (re)connection to a node begins with an event ``node.connected``:
        things may have happened unseen."""
        ...


class OtherServers(Protocol):
    """Those that share the database, asked about runs of theirs. Errors are those that they answer with, ``LeaseLost``
    while nobody has the run."""

    async def post(self, run_id: str, part: str, body: dict[str, Any]) -> None: ...

    async def changes(self, run_id: str) -> list[FileChange]: ...


class SecretCalls(Protocol):
    """What programs ask of hosts with secrets of ours."""

    def use(self, call: Call, agents: Sequence[str]) -> SecretUse:
        """What the call asks, where an agent that has one of these names may. NotFound, NoRights, InvalidValue."""
        ...

    def is_open(self, call: Call) -> bool:
        """Whether it was asked already by this machine."""
        ...

    async def answer(self, call: Call, use: SecretUse) -> Answer:
        """The host's answer; where it is asked already, of that."""
        ...


class Packages(Protocol):
    """Where packages come from."""

    async def resolve(self, needs: Needs, image: str, progress: Progress) -> tuple[Python, list[Part]]:
        """The wheels, now in the log, of all that is needed, for the Python of an image ("": that of workers).
        AgentInvalid, TooLarge, Unavailable …: they are not to be had."""
        ...


class ModelCalls(Protocol):
    """The gateway."""

    @property
    def turns_ended(self) -> int:
        """How many turns have come to an end here."""
        ...

    async def answer(
        self,
        call: Call,
        branch: int,
        *,
        new_at: int | None = None,
        budget: Budget = NO_BUDGET,
        joint: Sequence[JointBudget] = (),
    ) -> Answer:
        """Answer a model call: from the log, by attaching to the one in flight, or by asking a provider.

        new_at: ``turns_ended`` as it was before the log was seen to have nothing of this call. budget: what its run may
        spend in all; joint: what all of its agent may together.
        """
        ...

    def refused(self, call: Call, error: PerdureError) -> Answer:
        """What a program is told that is not answered, in the words of the API that it speaks."""
        ...

    async def forget(self, run_id: str) -> None:
        """The run has ended: nothing more is asked in its name."""
        ...
