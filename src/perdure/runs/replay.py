"""The server's side of the replay road: what a worker is told of its log, and a function that goes another way."""

from __future__ import annotations

from typing import Any

from perdure import __version__
from perdure.context.log import NewEntry
from perdure.errors import InvalidValue, VersionMismatch
from perdure.model import Entry, RunState
from perdure.runs import parking, steps
from perdure.runs.asked import Asked, Body
from perdure.runs.keyed import Keyed
from perdure.runs.record import Record
from perdure.runs.waits import SETS

CALLS_VERSION = 1  # of docs/formats/agent-calls.md: what SDK and server say to each other, and what keys look like
PAGE = 2000
ANSWERED = ("completed", "timed-out")  # what else ended a wait, the server tells when it is asked
COMMITTED = (
    "committed"  # the name of the line that says when a turn's answer was whole: the server has the answer itself
)
Line = list[Any]  # key, name, seq, hash of the request, answer or None; the first of a key is the call, one the end


def check_versions(record: Record) -> None:
    """Raises VersionMismatch where a run was begun with other calls: its log is not what its function asks now.

    Another perdure with the same calls goes on with it; whether the function goes the same way is seen call by call.
    """
    ours = {"perdure": __version__, "calls": CALLS_VERSION}
    theirs = {"perdure": record.made_by, "calls": record.calls_version}
    if record.calls_version != CALLS_VERSION:
        message = (
            f"this run was begun by perdure {theirs['perdure']} (calls version {theirs['calls']}), "
            f"and this is perdure {ours['perdure']} (calls version {ours['calls']})"
        )
        hint = "Start it anew, or go on with that version and a copy of this state folder."
        raise VersionMismatch(message, hint=hint, recorded=theirs, asked=ours)


async def history(asked: Asked) -> Body:
    """One page of what the log has of the run's calls, for a function that runs again."""
    after = asked.body().get("after", 0)
    if not isinstance(after, int):
        raise InvalidValue(f'"after" is not a seq: {after!r}')
    run = asked.run

    async def act() -> list[Entry]:
        if after == 0:
            run.keyed = Keyed()
        page = await run.context.read(run.id, branch=run.branch, after=after, limit=PAGE)
        if run.keyed is not None:
            for call in run.keyed.add(page):
                if run.replay is not None:
                    run.replay.saw(str(call[0].key), call, asked.call.epoch)
            run.keyed.complete = len(page) < PAGE
        return page

    page = await asked.warm(act)
    run.told(*(entry.payload["wait"] for entry in page if entry.kind == "wait.completed"))
    lines = [line for entry in page if entry.key and (line := _line(run.id, entry)) is not None]
    return {"lines": lines, "next": page[-1].seq if len(page) == PAGE else None}


def _line(run_id: str, entry: Entry) -> Line | None:
    said, kind = entry.payload, entry.kind
    name, answer = "", None
    if kind == "step.intent":
        name = said["name"]
    elif kind == "step.result":
        name, answer = said["name"], steps.recorded(entry)
    elif kind == "wait.started":
        wait = said["wait"]
        name = f"{wait['kind']}:{wait['name']}" if wait.get("name") else wait["kind"]
    elif kind == "wait.completed":
        if said["kind"] == "doubt" or "of" in said:  # of a step, or a part of a set: the whole is what is asked
            return None
        name = said["kind"]
        if said["outcome"] == "withdrawn" or (name not in SETS and said["outcome"] in ANSWERED):
            answer = parking.answer(name, said)
    elif kind == "fork":  # of the run that made them the server is asked: whether they are all there
        name = str(len(said["forks"]))
        if said["number"]:
            answer = {"number": said["number"], "run_id": run_id, "forks": said["forks"]}
    elif kind == "value":
        name, answer = said["of"], {"value": said["value"]}
    elif kind in ("emit", "message"):
        name, answer = said.get("name", ""), {}
    elif kind == "model.committed":
        name = COMMITTED
    elif kind == "signal":  # its key is its sender's
        return None
    return [entry.key, name, entry.seq, said.get("request", ""), answer]


async def mismatch(asked: Asked) -> Body:
    """The function asks for something else than its log has: the run fails, and says both."""
    told = asked.body()
    recorded, wanted = told.get("recorded"), told.get("asked")
    had = _shown(recorded, "nothing more")
    message = f"the log of this run has {had}, and its function asks for {_shown(wanted, 'nothing more: it has ended')}"
    hint = (
        "What a function does between its calls is to be the same each time: no clock, no chance, no files but by ctx."
    )
    details = {"recorded": recorded, "asked": wanted}
    if told.get("failure"):
        details["failure"] = told["failure"]
    error = VersionMismatch(message, hint=hint, **details).to_json()

    async def act() -> Body:
        entry = NewEntry(kind="diverged", payload={"policy": "fail", **details})
        await asked.run.write(entry, to=RunState.FAILED, epoch=asked.call.epoch + 1, why={"error": error}, error=error)
        return {}

    return await asked.warm(act)


def _shown(call: Any, nothing: str) -> str:
    if not isinstance(call, dict):
        return nothing
    name = f" {call['name']!r}" if call.get("name") else ""
    at = f" (entry {call['seq']})" if "seq" in call else ""
    return f"{call.get('kind', 'a call')}{name}{at}"
