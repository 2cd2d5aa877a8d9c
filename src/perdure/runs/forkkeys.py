"""Forks that were asked for with a key: what was asked, and the ids of the runs, kept before any of them is there.

So whoever asks again gets the same runs, and those that a server which ended in between had not made are made then.
They go with the log of the run: from then on nothing can be forked from it.
"""

from __future__ import annotations

import msgspec

from perdure.context.log import ContextLog
from perdure.errors import Conflict
from perdure.model import Frozen


def kind(run_id: str) -> str:
    """Of what is kept of a run, by key."""
    return f"fork:{run_id}"


class Wanted(Frozen, frozen=True, kw_only=True):
    """What somebody asked for."""

    at: int | None
    count: int
    name: str


class Forks(Frozen, frozen=True, kw_only=True):
    """What it means: the position that they leave at, and their ids."""

    wanted: Wanted
    branch: int
    seq: int
    runs: list[str]


async def found(context: ContextLog, run_id: str, key: str, wanted: Wanted) -> Forks | None:
    """Those of this key. Conflict: something else was asked for with it."""
    for kept in await context.kept(kind(run_id), key):
        forks = msgspec.convert(kept.value, Forks)
        if forks.wanted != wanted:
            hint = "Take another key for other forks."
            message = f"the key {key!r} is that of other forks of run {run_id}: {', '.join(forks.runs)}"
            raise Conflict(message, hint=hint, runs=forks.runs)
        return forks
    return None


async def keep(context: ContextLog, run_id: str, key: str, forks: Forks) -> tuple[Forks, bool]:
    """They, or those that somebody else kept first, and False."""
    try:
        await context.keep(kind(run_id), key, msgspec.to_builtins(forks), expected_version=0)
    except Conflict:
        older = await found(context, run_id, key, forks.wanted)
        if older is None:
            raise
        return older, False
    return forks, True
