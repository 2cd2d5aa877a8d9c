"""What the runs of a life do: together they use everything that a run can ask for, and each ends in one right way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.model import RunState
from perdure.testing.crash.provider import BROKEN, REFUSED
from perdure.testing.machines import CHAT, Ask, Effect, Program

Steps = Generator[Any, Any, Any]
LARGE = "a large value " * 100  # goes to a blob, that several runs share
LAPS = 8  # of a run on a microVM (``vmlife``), at most
LARGE_ALONE = "a large value of one run " * 100


class Outside:
    """What runs do to the world: a file that steps append to. Nothing takes it back."""

    def __init__(self, ledger: Path, lose: Callable[[str], None]) -> None:
        """lose: end the machine of this run, as kill -9 does."""
        self.ledger = ledger
        self.lose = lose
        self._come: set[tuple[str, str]] = set()
        ledger.touch()

    def do(self, run: str, step: str) -> str:
        with self.ledger.open("a") as file:
            file.write(f"{time.time()} {run} {step}\n")
        return f"{step} done"

    def comes_first(self, run: str, where: str) -> bool:
        """Whether the run comes by here for the first time."""
        if (run, where) in self._come:
            return False
        self._come.add((run, where))
        return True

    def lose_once(self, run: str, where: str) -> bool:
        """Whether the machine is lost here: the first time that it comes by."""
        first = self.comes_first(run, where)
        if first:
            self.lose(run)
        return first

    def done(self) -> list[tuple[float, str, str]]:
        """Moment, run and step of each effect."""
        lines = (line.split() for line in self.ledger.read_text().splitlines())
        return [(float(moment), run, step) for moment, run, step in lines]


@dataclass(frozen=True)
class Plan:
    """One run: what its program does, what people tell it, and how it ends."""

    name: str
    program: Callable[[Outside, str], Steps]
    state: RunState
    result: Any = None
    policy: dict[str, float] = field(default_factory=dict)
    signals: tuple[str, ...] = ()  # sent when it waits for them
    early: tuple[str, ...] = ()  # sent at once
    asleep: tuple[str, ...] = ()  # approvals that are answered only once it sleeps
    more: dict[str, Any] = field(default_factory=dict)  # of the request
    cancel: str = ""  # in this state
    forks: int = 0  # while it sleeps; then it is rewound
    takes_ledger: bool = False  # its input is the ledger's path
    made: int = 0  # runs that it makes itself
    brings_hook: bool = False
    tags: dict[str, str] = field(default_factory=dict)  # set once it has ended
    budget: dict[str, float] = field(default_factory=dict)  # the same
    again: bool = False  # once it has ended its key is over, and starts another one
    is_pruned: bool = False  # its log, at the end; of a run with forks theirs


def chat(text: str, at: int, **more: Any) -> Ask:
    return Ask(CHAT, {"messages": [{"role": "user", "content": text}], **more}, at=at)


def step(outside: Outside, run: str, name: str, at: int, on_doubt: str, *, lost: bool = False) -> Steps:
    """As ctx.step does it. lost: its machine is lost once, after the effect and before its result."""
    asked = yield Ask("step", {"name": name, "on_doubt": on_doubt}, at=at)
    if asked.value["status"] == "run":
        result = yield Effect(lambda: outside.do(run, name))
        if lost and (yield Effect(lambda: outside.lose_once(run, name))):
            yield Ask("wait", {"kind": "signal", "name": "never"}, lane="lost")
        asked = yield Ask("step/end", {"result": result}, at=at)
    return asked.value.get("result") or asked.value["error"]["type"]


def streamed(text: str, at: int) -> Steps:
    """A whole stream, asked for again under the same key where it was cut off with its server, as the SDK does."""
    asked = chat(text, at, stream=True)
    said = yield asked
    while "[DONE]" not in said.value:
        said = yield asked
    return said.value.count("[DONE]")


def everything(outside: Outside, run: str) -> Steps:
    yield Ask("begin", {}, at=0)
    yield Ask("emit", {"name": "started", "value": LARGE}, at=1)
    yield Ask("message", {"message": {"role": "user", "content": "hello"}}, at=2)
    messages = yield Ask("messages", {}, at=3)
    one = yield chat("everything one", 4)
    draft = yield from step(outside, run, "draft", 5, "retry")
    verdict = yield Ask("wait", {"kind": "approval", "prompt": "Go on?", "show": {"draft": LARGE}}, at=6)
    done = yield from streamed("everything two", 7)
    yield Ask("wait", {"kind": "time", "seconds": 0.1}, at=8)
    drawn = yield Ask("value", {"of": "uuid"}, at=12)
    both = yield [
        Ask("wait", {"kind": "signal", "name": "left"}, lane="main.1", at=0),
        Ask("wait", {"kind": "signal", "name": "right"}, lane="main.2", at=0),
    ]
    yield Ask("checkpoint", {"keep": False}, at=9)
    paid = yield from step(outside, run, "pay", 10, "ask")
    text = one.value["choices"][0]["message"]["content"]
    same = (yield Ask("value", {"of": "uuid"}, at=12)).value == drawn.value
    said = [text, len(messages.value["messages"]), draft, verdict.value["approved"], done, same]
    yield Ask("complete", {"result": [*said, [each.value["value"] for each in both], paid]}, at=11)


def failing(outside: Outside, run: str) -> Steps:
    """What goes wrong by itself, and its end."""
    yield Ask("emit", {"name": "begun", "value": LARGE_ALONE}, at=7)
    refused = yield chat(REFUSED, 0)
    broken = yield (asked := chat(BROKEN, 1, stream=True))
    while "stream-lost" in broken.value:  # with its server, and not by the provider
        broken = yield asked
    late = yield Ask("wait", {"kind": "signal", "name": "nobody", "timeout_s": 0.05}, at=2)
    yield [Ask("wait", {"kind": "approval", "prompt": "Sure?"}, at=3), Ask("wait/withdraw", {}, at=3)]
    kept = yield Ask("wait", {"kind": "signal", "name": "kept"}, at=4)
    begun = yield Ask("step", {"name": "fail", "on_doubt": "retry"}, at=5)
    if begun.value["status"] == "run":
        yield Ask("step/end", {"error": {"type": "ValueError", "message": "no"}}, at=5)
    what = f"{refused.status} {'error' in broken.value} {late.value['timed_out']} {kept.value['value']}"
    yield Ask("fail", {"error": {"code": "no-good", "message": what}}, at=6)


def lost(outside: Outside, run: str) -> Steps:
    """Its machine is lost in the middle of effects, which are then in doubt."""
    yield Ask("emit", {"name": "begun", "value": LARGE}, at=5)
    one = yield chat("lost one", 0)
    page = yield Ask("/perdure/secret/provider/page", {}, at=6)
    again = yield from step(outside, run, "retried", 1, "retry", lost=True)
    asked = yield from step(outside, run, "asked", 2, "ask", lost=True)
    failed = yield from step(outside, run, "failed", 3, "fail", lost=True)
    yield Ask("complete", {"result": [one.status, page.status, again, asked, failed]}, at=4)


def diverging(outside: Outside, run: str) -> Steps:
    """After its machine is lost it goes another way than its log."""
    yield Ask("emit", {"name": "way", "value": "first"}, at=0)
    first = yield Effect(lambda: outside.comes_first(run, "fork in the road"))
    if not first:  # hooks are being told that it runs, and it ends on another branch before they have taken it
        yield Effect(lambda: asyncio.sleep(0.1))
    yield Ask("emit", {"name": "turn", "value": "left" if first else "right"}, at=1)
    if first:  # only now: the way that it does not go again is in the log
        yield Effect(lambda: outside.lose(run))
        yield Ask("wait", {"kind": "signal", "name": "never"}, lane="lost")
    yield Ask("complete", {"result": "right"}, at=2)


def waiting(outside: Outside, run: str) -> Steps:
    """It is told that it is to end by the wait that it is in, and cleans up."""
    yield Ask("wait", {"kind": "signal", "name": "never"}, at=0)
    yield Ask("emit", {"name": "cleaned up"}, at=1)
    yield Ask("complete", {"result": "never"}, at=2)


def busy(outside: Outside, run: str) -> Steps:
    """It is told by the next thing that it asks."""
    said = yield (asked := Ask("emit", {"name": "working"}))
    while said.status == 200:
        yield Effect(lambda: asyncio.sleep(0.05))
        said = yield asked
    yield Ask("complete", {"result": "never"})


def queued(outside: Outside, run: str) -> Steps:
    yield Ask("wait", {"kind": "time", "seconds": 0.1}, at=0)
    yield Ask("complete", {"result": 1}, at=1)


def parent(outside: Outside, run: str) -> Steps:
    child = yield Ask("wait", {"kind": "child", "function": "child", "input": {"of": "parent"}}, at=0)
    yield Ask("complete", {"result": child.value["result"]}, at=1)


def child(outside: Outside, run: str) -> Steps:
    begun = yield Ask("begin", {}, at=0)
    yield Ask("wait", {"kind": "time", "seconds": 0.1}, at=1)
    yield Ask("complete", {"result": begun.value["input"]["of"]}, at=2)


def forking(outside: Outside, run: str) -> Steps:
    """While it waits it is forked, then taken back to its turn, whose answer it then has from its log."""
    one = yield chat("forking one", 0)
    verdict = yield Ask("wait", {"kind": "approval", "prompt": "Which way?"}, at=1)
    yield Ask("complete", {"result": [one.status, verdict.value["approved"]]}, at=2)


def forked(outside: Outside, run: str) -> Steps:
    """It forks itself, and waits for what its forks make of it."""
    one = yield chat("forked one", 0)
    forks = yield Ask("fork", {"count": 2}, at=1)
    number, made = forks.value["number"], forks.value["forks"]
    if number:
        yield Ask("wait", {"kind": "time", "seconds": 0.1}, at=2)
        yield Ask("complete", {"result": [one.status, number]}, at=3)
    waits = [{"kind": "fork", "run": fork} for fork in made]
    both = yield Ask("wait/set", {"mode": "all", "waits": waits}, at=2)
    yield Ask("complete", {"result": [each["result"] for each in both.value["waits"]]}, at=3)


def nothing(outside: Outside, run: str) -> Steps:
    """Of a run whose program is in a worker of the server."""
    yield from ()


# The replay road: in a worker process of the server, which ends with it. Its input is the ledger's path.
REPLAYED = """
import time
from perdure import agent

def act(ledger, run):
    with open(ledger, "a") as file:
        file.write(f"{time.time()} {run} redo\\n")
    return "redo done"

@agent(durability="replay")
def replayed(ctx, ledger: str):
    one = ctx.chat([{"role": "user", "content": "replayed one"}])
    done = ctx.step("redo", act, ledger, ctx.run_id)
    verdict = ctx.approval("Replay on?")
    ctx.sleep(0.1)
    ctx.emit("nearly", one.text)
    return [one.text, done, verdict.approved]
"""

ANSWER = "answer to everything one"
SLEEPY = {"idle_grace_s": 0.05, "checkpoint_turns": 1, "snapshots_kept": 2}
AWAKE = {"idle_grace_s": 1e10}

PLANS = (
    Plan(
        "everything",
        everything,
        RunState.COMPLETED,
        [ANSWER, 1, "draft done", True, 1, True, ["left", "right"], "pay done"],
        policy=SLEEPY,
        signals=("left", "right"),
        asleep=("Go on?",),
        is_pruned=True,
    ),
    Plan("failing", failing, RunState.FAILED, "400 True True kept", policy=SLEEPY, early=("kept",), is_pruned=True),
    Plan("lost", lost, RunState.COMPLETED, [200, 200, "retried done", "asked done", "InDoubt"], policy=AWAKE),
    Plan(
        "queued",
        queued,
        RunState.COMPLETED,
        1,
        policy=AWAKE,
        more={"queue": "line", "tags": {"of": "crash"}},
        brings_hook=True,
        tags={"of": "nobody"},
        budget={"calls": 9},
    ),
    Plan("queued_too", queued, RunState.COMPLETED, 1, policy=AWAKE, more={"queue": "line", "priority": 1}),
    Plan("diverging", diverging, RunState.COMPLETED, "right", policy=AWAKE),
    Plan("overruling", diverging, RunState.COMPLETED, "right", policy=AWAKE, more={"on_divergence": "live"}),
    Plan("keyed", queued, RunState.COMPLETED, 1, policy=AWAKE, more={"key_ttl_s": 0.05}, again=True),
    Plan("waiting", waiting, RunState.CANCELLED, policy=SLEEPY, cancel="suspended"),
    Plan("busy", busy, RunState.CANCELLED, policy=AWAKE, cancel="running"),
    Plan(
        "replayed",
        nothing,
        RunState.COMPLETED,
        ["answer to replayed one", "redo done", True],
        more={"source": REPLAYED, "file": "replayed.py", "durability": "replay", "image": ""},
        takes_ledger=True,
    ),
    Plan("parent", parent, RunState.COMPLETED, "parent", policy=SLEEPY, made=1),
    Plan("forked", forked, RunState.COMPLETED, [[200, 1], [200, 2]], policy=SLEEPY, made=2),
    Plan(
        "forking",
        forking,
        RunState.COMPLETED,
        [200, True],
        policy=SLEEPY,
        forks=2,
        asleep=("Which way?",),
        is_pruned=True,
    ),
)
BY_NAME = {plan.name: plan for plan in PLANS}
PROGRAMS = {plan.name: plan.program for plan in PLANS} | {"child": child}
EFFECTS = {
    "redo": "retry",
    "draft": "retry",
    "pay": "ask",
    "retried": "retry",
    "asked": "ask",
    "failed": "fail",
    **{f"lap{lap}": "retry" for lap in range(LAPS)},
}  # by on_doubt


def program(name: str, outside: Outside, run: str) -> Program:
    return lambda: PROGRAMS[name](outside, run)
