"""The kinds of entries. Their payloads: ``docs/formats/context-log.md``. Readers skip kinds that they do not know."""

from __future__ import annotations

import difflib

from perdure.errors import InvalidValue
from perdure.model import RunState

KINDS = (
    *(f"run.{state}" for state in RunState),  # one per transition of the run
    # of a call, with its key
    "model.intent",  # {"request": HASH, ...}: before anything is asked
    "model.started",  # right before EACH request to a provider (``turns_asked`` counts them)
    "model.committed",  # the whole answer: from now on the call is answered from the log
    "model.aborted",  # the provider refused or broke; ``answer``: what was told instead
    "model.replayed",  # {"seq": ...}: by ``runs``: a turn of an earlier epoch was answered again
    "step.intent",
    "step.result",
    "wait.started",
    "wait.completed",
    "emit",
    "message",
    "value",
    "note",
    "overruled",
    "ending.told",  # it was answered so because the run is to end
    # of the run
    "signal",
    "snapshot",
    "tagged",  # tags and metadata were changed
    "ending",
    "forked",
    "rewound",
    "diverged",
    "replayed",
)


def is_known(kind: str) -> bool:
    """Whether it is one of them, or with a dot at its end how some of them begin."""
    return kind in KINDS or (kind.endswith(".") and any(known.startswith(kind) for known in KINDS))


def unknown(kind: str) -> InvalidValue:
    """No entry has this kind."""
    beginnings = dict.fromkeys(known.partition(".")[0] + "." for known in KINDS if "." in known)
    near = difflib.get_close_matches(kind, (*beginnings, *KINDS), n=1)
    meant = f"Did you mean {near[0]}? " if near else ""
    known = ", ".join((*beginnings, *(known for known in KINDS if "." not in known)))
    return InvalidValue(f"no such kind of entry: {kind[:60]!r}", hint=f"{meant}Known are {known}.")
