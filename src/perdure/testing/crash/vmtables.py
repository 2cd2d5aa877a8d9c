"""What came of lives on microVMs, as Markdown: the sections of docs/crash-matrix.md."""

from __future__ import annotations

from collections import Counter

from perdure.testing.crash import page
from perdure.testing.crash.atrandom import Kill
from perdure.testing.crash.databases import TITLES
from perdure.testing.crash.parts import PARTS
from perdure.testing.crash.vmlife import IN_LOG, STATES, VmOutcome

HEAD = """Of {revision}, on {host}: {lives} lives, {kills} kills, {wrong} wrong.

"""

IN_STATES = """A real microVM in each life, and a run of laps: in each it asks a model, does a step that writes to a
ledger outside, and waits for a person. In a life one part is killed (SIGKILL) in each of the states, one a lap. Each
cell: how often it was; in brackets the state that the run was in already when the part was dead, where that is another
one. -: there is no such part then.

"""

AT_RANDOM = """Such runs, {at_once} at a time on one node and one server, and kills at random instants. One of a VM, a
keeper or a pager hits the run whose it is, one of the node or the server all that are there. Each cell: how many runs
were hit in that state.

"""

# In which the kills at random find runs, and what they are then doing.
FOUND = {
    "queued": "it was asked for",
    "starting": STATES["starting"],
    "running": "its program goes on",
    "waiting": STATES["waiting"],
    "suspending": STATES["suspending"],
    "suspended": STATES["suspended"],
    "resuming": STATES["resuming"],
    "recovering": "its machine was lost, and is being restored",
    "completed": "it has ended, and is looked at",
}


def in_states(outcomes: list[VmOutcome], wrong: int, host: str) -> str:
    """Of the lives in whose states somebody was killed, on one database."""
    kills = sum(len(outcome.killed) for outcome in outcomes)
    facts = {"revision": page.revision(), "host": host, "lives": len(outcomes), "kills": kills}
    lines = [HEAD.format(**facts, wrong=wrong), IN_STATES]
    lines.append("| state | the run | " + " | ".join(PARTS) + " |\n| --- | --- |" + " --- |" * len(PARTS) + "\n")
    for state, what in STATES.items():
        lines.append(f"| {state} | {what} | " + " | ".join(_cell(outcomes, state, part) for part in PARTS) + " |\n")
    counts = {part: sum(len(o.wrong) for o in outcomes if o.wish.part == part) for part in PARTS}
    lines.append("| | wrong in these lives | " + " | ".join(str(counts[part]) for part in PARTS) + " |\n")
    return "".join(lines)


def _cell(outcomes: list[VmOutcome], state: str, part: str) -> str:
    lives = [outcome for outcome in outcomes if outcome.wish.part == part]
    deaths = [was for outcome in lives for who, wished, was in outcome.killed if (who, wished) == (part, state)]
    there = sum(was == IN_LOG.get(state, state) for was in deaths)
    words = [str(there)] if there else []
    words += [f"({was})" for was in deaths if was != IN_LOG.get(state, state)]
    return " ".join(words) or "-"


def at_random(database: str, outcomes: list[VmOutcome], kills: list[Kill], wrong: int, host: str, at_once: int) -> str:
    """Of the lives at random, and the kills there, on one database."""
    facts = {"revision": page.revision(), "host": host, "lives": len(outcomes), "kills": len(kills)}
    lines = [HEAD.format(**facts, wrong=wrong), AT_RANDOM.format(at_once=at_once)]
    lines.append("| state | the run | " + " | ".join(PARTS) + " |\n| --- | --- |" + " --- |" * len(PARTS) + "\n")
    counts = Counter((state, kill.part) for kill in kills for state in kill.states.values())
    for state, what in FOUND.items():
        cells = " | ".join(str(counts[state, part] or "-") for part in PARTS)
        lines.append(f"| {state} | {what} | {cells} |\n")
    by_part = Counter(kill.part for kill in kills)
    lines.append(f"| | kills on {TITLES[database]} | " + " | ".join(str(by_part[part]) for part in PARTS) + " |\n")
    return "".join(lines)
