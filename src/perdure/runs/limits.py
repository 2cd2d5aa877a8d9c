"""How long a run may take. Pure facts of its record; the moments are seconds since 1970.

``timeout_s`` counts from the moment that the run (this attempt of it) left the queue, ``active_timeout_s`` only while
it has a machine. What was counted is in the record, so a restart of the server forgets nothing.
"""

from __future__ import annotations

from typing import Any

from perdure.model import RunState
from perdure.runs.record import Record
from perdure.runs.states import TERMINAL

WITH_MACHINE = frozenset(
    (RunState.STARTING, RunState.RUNNING, RunState.WAITING, RunState.SUSPENDING, RunState.RESUMING)
)


def clocked(record: Record, to: RunState, now: float) -> dict[str, float]:
    """What the arrow to ``to`` changes in the record's times."""
    changes: dict[str, float] = {}
    if to in TERMINAL or record.state in TERMINAL:
        changes["ended"] = now if to in TERMINAL else 0.0
    if record.state is RunState.SUSPENDED and record.suspended_at:
        slept_s = max(0.0, now - record.suspended_at)
        changes["suspended_s"] = record.suspended_s + slept_s
        if record.thinking:
            changes["suspended_thinking_s"] = record.suspended_thinking_s + slept_s
    if record.state is RunState.QUEUED and to is RunState.STARTING:
        changes |= {"began": now, "dequeued": now}
    if to in WITH_MACHINE and not record.active_since:
        changes["active_since"] = now
    elif to not in WITH_MACHINE and record.active_since:
        # A clock that was set back takes nothing away.
        changes |= {"active_s": record.active_s + max(0.0, now - record.active_since), "active_since": 0.0}
    return changes


def _deadlines(record: Record) -> list[tuple[float, str]]:
    """When which limit passes, if the run stays as it is."""
    request, found = record.request, list[tuple[float, str]]()
    if request.timeout_s is not None and record.began:
        found.append((record.began + request.timeout_s, "timeout_s"))
    if request.active_timeout_s is not None and record.active_since:
        found.append((record.active_since + request.active_timeout_s - record.active_s, "active_timeout_s"))
    return found


def deadline(record: Record) -> float | None:
    """When something is to be done about the run; None while nothing is."""
    if record.state in TERMINAL:
        return None
    if record.ending is not None:
        return record.ending.until
    return min((at for at, _ in _deadlines(record)), default=None)


def passed(record: Record, now: float) -> dict[str, Any] | None:
    """The error of a run whose time is over; None while it is not."""
    for at, name in sorted(_deadlines(record)):
        if at <= now:
            limit_s = getattr(record.request, name)
            body = "process" if record.request.is_replay else "machine"
            what = "of wall time" if name == "timeout_s" else f"with a {body}"
            message = f"the run did not end within {limit_s:g} s {what}"
            option = "--" + name.removesuffix("_s").replace("_", "-")
            hint = f"Give it more with {option}, or look with `perdure show` at where the time went."
            return {"code": "timed-out", "message": message, "hint": hint, "details": {"limit": name}}
    return None
