"""What must hold of hooks: each state was told, at least once, in order, and again only for a death."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from perdure.model import RunInfo
from perdure.testing.crash.listener import NAME, STATES

if TYPE_CHECKING:
    from perdure.testing.crash.lived import Lived

TOLD_S = 120.0  # after its end, while servers may be killed


async def wrong(life: Lived, ended: list[RunInfo]) -> list[str]:
    """What does not hold, in words."""
    found = []
    for info in ended:
        if info.origin is not None:  # a fork brings no hooks along
            continue
        wanted = {
            f"{entry.run_id}:{entry.branch}:{entry.seq}": entry.time
            for entry in await life.people.lineage(info.id)
            if entry.run_id == info.id and entry.kind in {f"run.{state}" for state in STATES}
        }
        for hook in (NAME, "0") if info.id in life.people.hooked else (NAME,):
            found += [f"hook {hook} of {info.agent} ({info.id}): {what}" for what in await _of(life, hook, wanted)]
        known = await life.people.read(info.id)
        for delivery in life.listener.told:
            run, branch, seq = delivery.id.split(":")
            entry = known.get((run, int(branch), int(seq)))
            if run == info.id and (entry is None or entry["kind"] != f"run.{delivery.state}"):
                found.append(f"{info.agent}: a hook was told of {delivery.id}, {delivery.state}, which is not there")
    return found


async def _of(life: Lived, hook: str, wanted: dict[str, float]) -> list[str]:
    """Of one run. wanted: deliveries in order, and when what they tell was written."""
    deadline = time.monotonic() + TOLD_S
    while missing := set(wanted) - set(told := _told(life, hook)):
        if time.monotonic() > deadline:
            return [f"it was not told of {', '.join(sorted(missing))}"]
        await asyncio.sleep(0.02)
    firsts = [delivery for delivery in told if delivery in wanted]
    found = [] if firsts == list(wanted) else [f"it was told in the order {firsts}, not {list(wanted)}"]
    for delivery, written in wanted.items():
        # what a server sends may be heard after its death: all that is sure is that it was written before
        died = sum(death.who == "server" and written <= death.time for death in life.deaths)
        if len(told[delivery]) > 1 + died:
            found.append(f"it was told of {delivery} {len(told[delivery])} times, {died} servers had died since")
    return found


def _told(life: Lived, hook: str) -> dict[str, list[float]]:
    """When it was told of what, in the order of the first times."""
    told: dict[str, list[float]] = defaultdict(list)
    for delivery in life.listener.told:
        if delivery.hook == hook:
            told[delivery.id].append(delivery.time)
    return told
