"""Tools about runs: durable executions of an agent or a program."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from perdure.client import defaultimage, source
from perdure.client.server import ENDED, WAIT_S
from perdure.errors import InvalidValue
from perdure.integrations.mcp.tools import ADDS, CHANGES, LOOKS, RUNS_CODE, Answer, add, plain
from perdure.model import Entry, RunInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from mcp.server.mcpserver import MCPServer

    from perdure.client.node import NodeClient
    from perdure.client.server import ServerClient

SHOWN_MAX = 100  # runs of a list
NOTHING: dict[str, str] = {}

Seq = Annotated[int, Field(ge=1, description="the seq of an entry of its log")]
Run = Annotated[str, Field(description="the run's id, a unique prefix of it, or its name")]
Patience = Annotated[float, Field(ge=0, le=600, description="how long to wait for it")]


class RunTools:
    """server: a client of the server. node: gives one of the node that it uses; both answer, or raise."""

    def __init__(self, server: ServerClient, node: Callable[[], NodeClient]) -> None:
        self._server = server
        self._node = node

    def offer(self, server: MCPServer[Any]) -> None:
        """All of them."""
        for tool, hints in (
            (self.run_start, RUNS_CODE),
            (self.run_list, LOOKS),
            (self.run_status, LOOKS),
            (self.run_result, LOOKS),
            (self.run_log, LOOKS),
            (self.run_output, LOOKS),
            (self.run_signal, CHANGES),
            (self.run_approve, CHANGES),
            (self.run_checkpoint, ADDS),
            (self.run_fork, ADDS),
            (self.run_rewind, CHANGES),
            (self.run_cancel, CHANGES),
        ):
            add(server, tool, hints)

    def run_start(
        self,
        agent: Annotated[
            str, Field(description="FILE.py:FUNCTION on this machine; with source_text any file name, and FUNCTION")
        ] = "",
        source_text: Annotated[str, Field(description="the agent's Python file, where it lies on no disk")] = "",
        command: Annotated[
            tuple[str, ...], Field(description="a program, instead of an agent; it needs an image")
        ] = (),
        image: str = "",
        input: Annotated[Any, Field(description="the agent's input: any JSON value")] = None,
        durability: Annotated[
            Literal["", "snapshot", "replay"],
            Field(description="snapshot: in a microVM; replay: in a process of this machine; empty: as @agent says"),
        ] = "",
        key: Annotated[str, Field(description="start only once: the same key gives the same run")] = "",
        name: str = "",
        env: dict[str, str] = NOTHING,
        tags: dict[str, str] = NOTHING,
        memory_mib: Annotated[int, Field(ge=0)] = 0,
        vcpus: Annotated[int, Field(ge=0)] = 0,
        timeout_s: Annotated[float | None, Field(gt=0)] = None,
    ) -> Answer:
        """Start a durable run of an agent (a Python function marked with @agent), or of any program in an image. It
        goes on through crashes and restarts. Wait for it with run_result."""
        request: dict[str, Any] = {"image": image, "memory_mib": memory_mib, "vcpus": vcpus}
        if command:
            if agent or not image or durability == "replay":
                raise InvalidValue("a program needs an image, and is no agent", hint=source.FORMS)
            request["command"] = list(command)
        else:
            request = _of_agent(agent, source_text, {**request, "input": input, "durability": durability})
        if request.get("durability", "snapshot") == "snapshot" and defaultimage.is_meant(request["image"]):
            request["image"] = defaultimage.ensure(self._node())
        info = self._server.start(**request, key=key or None, name=name, env=env, tags=tags, timeout_s=timeout_s)
        return shown(info)

    def run_list(
        self,
        states: Annotated[tuple[str, ...], Field(description="only those in one of these states; none: all")] = (),
        tags: dict[str, str] = NOTHING,
    ) -> Answer:
        """Runs, the newest first, 100 at most."""
        found = self._server.runs(states=states, tags=tags)
        return {"runs": [brief(info) for info in found[:SHOWN_MAX]], "more": max(0, len(found) - SHOWN_MAX)}

    def run_status(self, run: Run) -> Answer:
        """How a run is: its state, what it waits for, its result or its error, its snapshots and children."""
        return plain(self._server.get(run))

    def run_result(self, run: Run, timeout_s: Patience = 60.0) -> Answer:
        """Wait until a run has ended: its result, or its error. When the time is over first, its state and what it
        waits for (ask again, or answer that with run_approve or run_signal)."""
        deadline = time.monotonic() + timeout_s
        info = self._server.get(run, wait_s=min(timeout_s, WAIT_S))
        while info.state not in ENDED and (left_s := deadline - time.monotonic()) > 0:
            info = self._server.get(run, wait_s=min(left_s, WAIT_S))
        return shown(info) | {"ended": info.state in ENDED}

    def run_log(
        self,
        run: Run,
        after: Annotated[int, Field(ge=0, description="only entries after this seq")] = 0,
        limit: Annotated[int, Field(ge=1, le=1000)] = 100,
        kind: Annotated[str, Field(description="only of this kind, or one that begins so: 'model.'")] = "",
        values: Annotated[bool, Field(description="large values whole, not as references")] = False,
    ) -> Answer:
        """The context log of a run, in order: what it said, asked, did and waited for. The seq of an entry is what
        run_fork and run_rewind go back to."""
        entries = self._server.entries(run, after=after, limit=limit, compact=not values, kind=kind or None)
        return {"entries": [_entry(entry) for entry in itertools.islice(entries, limit)]}

    def run_output(
        self,
        run: Run,
        lines: Annotated[int, Field(ge=1, le=2000, description="the last so many")] = 100,
    ) -> Answer:
        """What a run's program has printed."""
        pieces = list(self._server.printed(run, tail=lines))
        return {"output": b"".join(piece.data for piece in pieces).decode(errors="replace")}

    def run_signal(
        self,
        run: Run,
        name: str,
        value: Any = None,
        id: Annotated[str, Field(description="the run takes a signal of the same id only once")] = "",
    ) -> Answer:
        """Send a run a signal, with any JSON value. It is kept until the run waits for it."""
        info = self._server.signal(run, name, value, id=id or None)
        return brief(info) | {"outcome": info.outcome, "wait_id": info.wait_id}

    def run_approve(
        self,
        run: Run,
        approved: bool,
        comment: str = "",
        by: Annotated[str, Field(description="who decided it")] = "",
        wait_id: Annotated[str, Field(description="which of its approvals, where it waits for several")] = "",
        values: dict[str, Any] = NOTHING,
    ) -> Answer:
        """Answer a run that waits for a person's approval. Ask the person first: the decision is theirs, not yours."""
        return self._server.approve(
            run, wait_id=wait_id or None, approved=approved, comment=comment, by=by, values=values
        )

    def run_checkpoint(
        self, run: Run, keep: Annotated[bool, Field(description="it is not given up for newer ones")] = False
    ) -> Answer:
        """Take a snapshot of a run's machine now; the run goes on."""
        return plain(self._server.checkpoint(run, keep=keep))

    def run_fork(
        self,
        run: Run,
        at: Annotated[int | None, Field(ge=1, description="the seq of an entry of its log; null: the newest")] = None,
        count: Annotated[int, Field(ge=1, le=32)] = 1,
        name: str = "",
    ) -> Answer:
        """Make new runs that go on from an entry of this one's log, each by itself, with its machine of then."""
        return {"runs": [brief(info) for info in self._server.fork(run, at=at, count=count, name=name)]}

    def run_rewind(self, run: Run, to: Seq) -> Answer:
        """Take a run itself back to an entry of its log, also after its end: it goes on from there on a new branch; the
        old one stays readable."""
        return shown(self._server.rewind(run, to))

    def run_cancel(
        self, run: Run, reason: str = "", force: Annotated[bool, Field(description="no time to clean up")] = False
    ) -> Answer:
        """End a run, its children and their machines."""
        return shown(self._server.cancel(run, reason=reason, force=force))


def _of_agent(agent: str, text: str, wished: dict[str, Any]) -> dict[str, Any]:
    """What starts it: what is wished for comes before what ``@agent`` says."""
    if text:
        place, _, function = agent.rpartition(":")
        found = source.parse(text, place or "agent.py", function)
    else:
        found = source.read(agent)
    named = {"source": found.source, "file": found.file, "function": found.function, "modules": found.modules}
    return source.completed({**wished, **named})


def brief(info: RunInfo) -> Answer:
    """A run in a line."""
    named = {"name": info.name} if info.name else {}
    return {"id": info.id, **named, "agent": info.agent, "state": str(info.state), "seq": info.seq}


def shown(info: RunInfo) -> Answer:
    """The same with what it waits for, or how it ended."""
    told = brief(info)
    if info.waits:
        told["waits"] = info.waits
    if info.state in ENDED:
        told |= {"error": info.error} if info.error else {"result": info.result}
    return told


def _entry(entry: Entry) -> Answer:
    keyed = {"key": entry.key} if entry.key else {}
    return {"seq": entry.seq, "time": entry.time, "kind": entry.kind, **keyed, "payload": entry.payload}
