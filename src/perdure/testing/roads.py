"""The examples on both roads: each lived through once, and what is to be the same afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.client import source
from perdure.client.server import ServerClient
from perdure.errors import AgentInvalid
from perdure.model import Entry, RunInfo
from perdure.testing.aside import aside
from perdure.testing.house import Provider

EXAMPLES = Path(__file__).parents[3] / "examples"
INPUT = {"topic": "owls"}
INPUTS = {
    "order": {"item": "owl"},
    "team": {"topics": ["owls"]},  # one child: which of two is first is chance
    "shop": {"wish": "two owls"},
}
FORMS = {"order": {"price": 12}}
OTHER_EACH_TIME = ("pid", "started", "run_id", "at")  # what an example shows of its process, and of its children


@dataclass(frozen=True)
class Life:
    """How a run ended, and what its log says that it did, without when and where."""

    info: RunInfo
    result: Any
    told: list[tuple[Any, ...]]
    entries: list[Entry]


def agents() -> list[str]:
    """FILE.py:FUNCTION of every agent in ``examples`` that names no image."""
    found = []
    for path in sorted(EXAMPLES.glob("*.py")):
        for name in re.findall(r"^(?:async )?def (\w+)\(", path.read_text(), re.MULTILINE):
            try:
                is_wherever = not source.read(f"{path}:{name}").image
            except AgentInvalid:
                continue  # a function that is none
            if is_wherever:  # else it needs programs that are not on every machine
                found.append(f"{path}:{name}")
    return found


def live(server: ServerClient, reference: str, durability: str, image: str = "") -> Life:
    """Start an example, approve what it asks a person, send the signals that it waits for, and follow it to its end."""
    agent = source.read(reference)
    run = server.start(
        source=agent.source,
        file=agent.file,
        function=agent.function,
        input=INPUTS.get(agent.function, INPUT),
        durability=durability,
        image=image,
        memory_mib=agent.memory_mib if durability == "snapshot" else 0,
    ).id
    entries = []
    for entry in server.entries(run, follow=True):
        entries.append(entry)
        if entry.kind == "run.suspended":  # nothing of it runs
            for wait in server.get(run).waits:
                if wait["kind"] == "approval":
                    server.approve(run, wait_id=wait["id"], by="test", values=FORMS.get(agent.function))
                elif wait["kind"] == "signal":
                    server.signal(run, wait["name"], wait["name"], id=wait["id"])
    info = server.get(run)
    return Life(info, _same(info.result), [line for entry in entries if (line := _told(entry))], entries)


def _told(entry: Entry) -> tuple[Any, ...] | None:
    said = entry.payload
    if entry.kind == "model.committed":
        return entry.kind, said["text"]
    if entry.kind in ("step.intent", "step.result", "emit", "value", "message"):
        shown = {name: said[name] for name in ("name", "result", "error", "value", "message") if name in said}
        return entry.kind, _same(shown)
    if entry.kind == "wait.started":
        return entry.kind, said["wait"]["kind"], said["wait"].get("name"), _same(said["wait"].get("show"))
    if entry.kind == "wait.completed":
        return entry.kind, said["kind"], said["outcome"], _same(said.get("value"))
    return (entry.kind,) if entry.kind in ("run.completed", "run.failed", "diverged") else None


def _same(value: Any) -> Any:
    """A value without what is other each time."""
    if isinstance(value, dict):
        return {name: _same(part) for name, part in value.items() if name not in OTHER_EACH_TIME}
    return [_same(part) for part in value] if isinstance(value, list) else value


@contextmanager
def provider() -> Iterator[Provider]:
    """A provider that says the same each time, in a thread of its own."""
    made = Provider()
    with aside(made):
        yield made
