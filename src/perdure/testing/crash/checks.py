"""What must hold after a life, whoever died in it. Each check is about what is there, or was done; none about how."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from perdure.errors import PerdureError
from perdure.host.paths import Home
from perdure.model import RunInfo
from perdure.testing.crash import hooked
from perdure.testing.crash.people import as_line
from perdure.testing.crash.workload import EFFECTS, Plan

if TYPE_CHECKING:
    from perdure.testing.crash.life import Life
    from perdure.testing.crash.lived import Lived

# What a guest was told is in the log: by path, the kinds of entries of which one is there.
ANSWERED = {
    "/perdure/v1/emit": ("emit",),
    "/perdure/v1/value": ("value",),
    "/perdure/v1/message": ("message",),
    "/perdure/v1/messages": ("note",),
    "/perdure/v1/step": ("step.intent", "step.result"),
    "/perdure/v1/step/end": ("step.result",),
    "/perdure/v1/fork": ("fork",),
    "/perdure/v1/wait": ("wait.completed",),
    "/v1/chat/completions": ("model.committed", "model.aborted"),
}
Entries = list[dict[str, Any]]


async def wrong(life: Life, ends: list[tuple[Plan, RunInfo]]) -> list[str]:
    """What does not hold, in words."""
    found: list[str] = []
    known = await life.people.ask(lambda client: client.runs())
    wanted = len(ends) + sum(plan.made for plan in {plan.name: plan for plan, _ in ends}.values())
    if len(known) != wanted:
        found.append(f"there are to be {wanted} runs, {len(known)} are there")
    found += await hooked.wrong(life, [info for _, info in ends])
    for plan, info in ends:
        found += [f"{plan.name} ({info.id}): {what}" for what in await of_run(life, plan, info)]
    return found


async def of_run(life: Lived, plan: Plan, info: RunInfo) -> list[str]:
    """What does not hold of one run."""
    run = info.id
    here = await life.people.read(run)
    entries = sorted(here.values(), key=lambda entry: (entry["branch"], entry["seq"]))
    shown = {place: line for place, line in life.people.seen.items() if place[0] == run}
    found = [
        *_ended(plan, info, entries),
        *(f"entry {place} was shown, and is gone" for place in shown if place not in here),
        *(f"entry {p} was shown, and is another one" for p in shown if p in here and as_line(here[p]) != shown[p]),
        *_acknowledged(life, run, entries),
        *_turns(life, run, entries),
        *_effects(life, run, entries),
    ]
    try:
        count = await life.people.verify(run)
    except PerdureError as error:
        return [*found, f"its chain does not verify: {error}"]
    return found if count == len(here) else [*found, f"its chain has {count} entries, {len(here)} were read"]


def _ended(plan: Plan, info: RunInfo, entries: Entries) -> list[str]:
    result = info.result
    if info.error and info.state == "failed":
        result = info.error["message"]
    found = [] if info.state == plan.state else [f"it is {info.state}, not {plan.state}: {info.error}"]
    if not found and result != plan.result:
        found.append(f"its result is {result!r}, not {plan.result!r}")
    ends = [entry for entry in entries if entry["kind"] in ("run.completed", "run.failed", "run.cancelled")]
    if len(ends) != 1:
        found.append(f"it ended {len(ends)} times")
    return found


def _acknowledged(life: Lived, run: str, entries: Entries) -> list[str]:
    """What people and guests were told is in the log."""
    found = []
    for of, kind, part in life.people.acknowledged:
        if of == run and not any(e["kind"] == kind and part in json.dumps(e.get("payload", {})) for e in entries):
            found.append(f"somebody was told of {kind} with {part}, which is not there")
    by_key: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        by_key[entry.get("key", "")].add(entry["kind"])
    for of, key, path in life.answered:
        if of == run and by_key[key].isdisjoint(wanted := ANSWERED.get(path, ())) and wanted:
            found.append(f"the guest was answered {path} of {key}, which has no {' or '.join(wanted)}")
    return found


def _turns(life: Lived, run: str, entries: Entries) -> list[str]:
    """A provider is asked again only for what was in flight at a death, and never after it was kept."""
    found = []
    turns: dict[str, Entries] = defaultdict(list)
    for entry in entries:
        if entry["kind"].startswith("model."):
            turns[entry.get("key", "")].append(entry)
    for key, turn in turns.items():
        said = next((e.get("payload", {})["messages"][-1]["content"] for e in turn if e["kind"] == "model.intent"), "")
        asked = [moment for moment, text in life.provider.asked if text == said]
        started = [entry["time"] for entry in turn if entry["kind"] == "model.started"]
        kept = [e["time"] for e in turn if e["kind"] == "model.committed" or e.get("payload", {}).get("answer")]
        if len(kept) != 1:
            found.append(f"turn {key} was kept {len(kept)} times")
            continue
        in_flight = sum(1 for d in life.deaths if d.who == "server" and started and started[0] < d.time < kept[0])
        allowed = 1 + sum(1 for d in life.deaths if d.who == "server" and started and started[0] <= d.time <= kept[0])
        if len(asked) > allowed:
            found.append(f"turn {key} was asked {len(asked)} times, with {in_flight} deaths while it was in flight")
        if len(asked) > len(started):
            found.append(f"turn {key} was asked {len(asked)} times, {len(started)} are recorded")
        if any(moment > kept[0] for moment in asked):
            found.append(f"turn {key} was asked again after it was kept")
    return found


def _effects(life: Lived, run: str, entries: Entries) -> list[str]:
    """An effect comes again only where a death fell into it, and as its policy says."""
    found = []
    done = Counter(step for _, of, step in life.outside.done() if of == run)
    deaths = [death.time for death in life.deaths if death.who in ("server", run)]
    for step, on_doubt in EFFECTS.items():
        intents = [e for e in entries if e["kind"] == "step.intent" and e.get("payload", {})["name"] == step]
        if not intents:
            continue
        keys = {entry.get("key", "") for entry in intents}
        results = [e for e in entries if e["kind"] == "step.result" and e.get("key", "") in keys]
        ends = [entry["time"] for entry in results if "result" in entry.get("payload", {})]
        until = results[-1]["time"] if results else float("inf")
        times, inside = done[step], sum(1 for moment in deaths if intents[0]["time"] <= moment <= until)
        repeats = {"retry": inside, "ask": len(intents) - 1, "fail": 0}[on_doubt]
        if times > 1 + min(repeats, inside):
            found.append(f"step {step} (on_doubt={on_doubt}) took effect {times} times, with {inside} deaths in it")
        if ends and not times:
            found.append(f"step {step} has a result and took no effect")
        if any(moment > ends[0] for moment, of, what in life.outside.done() if ends and (of, what) == (run, step)):
            found.append(f"step {step} took effect again after its result was kept")
    return found


def left(home: Home) -> list[str]:
    """What a server leaves behind that it should not."""
    paths = (home.socket("perdured"), home.run / "server.json")
    return [f"{path.name} is left" for path in paths if path.exists()]
