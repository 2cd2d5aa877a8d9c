"""The states of a run and the arrows between them: a table, not code.

    queued       accepted, nothing was started yet
    starting     a machine is being made from the image
    running      the machine runs and the program computes, or asks something that is no wait
    waiting      the program is parked on at least one wait; the machine is still warm
    suspending   nothing but waits is open: the machine is being captured
    suspended    the machine is gone; its snapshot is durable
    resuming     a wait was completed: the snapshot is being restored, in a new epoch
    recovering   the machine was lost: the newest snapshot (or the start) is next, in a new epoch
    completed failed cancelled       the end: the machine is removed. No arrow leads away but that of a rewind

Every arrow that a run takes is one entry ``run.STATE`` in its log, written in one transaction with the run's new
summary by compare-and-set. An epoch begins with ``starting``, ``resuming`` and ``recovering``.
"""

from __future__ import annotations

from perdure.errors import IllegalTransition
from perdure.model import RunState as S

TERMINAL = frozenset((S.COMPLETED, S.FAILED, S.CANCELLED))

_WARM = (S.RECOVERING, S.COMPLETED, S.FAILED, S.CANCELLED)

ARROWS: dict[S, tuple[S, ...]] = {
    S.QUEUED: (S.STARTING, S.FAILED, S.CANCELLED),
    S.STARTING: (S.RUNNING, S.RECOVERING, S.FAILED, S.CANCELLED),
    S.RUNNING: (S.WAITING, S.SUSPENDING, *_WARM),
    S.WAITING: (S.RUNNING, S.SUSPENDING, *_WARM),
    S.SUSPENDING: (S.SUSPENDED, S.WAITING, S.RUNNING, S.RECOVERING, S.FAILED, S.CANCELLED),
    S.SUSPENDED: (S.RESUMING, S.RECOVERING, S.FAILED, S.CANCELLED),
    S.RESUMING: (S.RUNNING, S.RECOVERING, S.FAILED, S.CANCELLED),
    S.RECOVERING: (S.RUNNING, S.STARTING, S.RECOVERING, S.FAILED, S.CANCELLED),
    S.COMPLETED: (),
    S.FAILED: (),
    S.CANCELLED: (),
}


# A rewind alone takes these: back to ``recovering``, also from the end. Only what was begun can go back.
REWINDS = frozenset(ARROWS) - {S.QUEUED}


def check(run_id: str, state: S, new: S, *, rewinds: bool = False) -> None:
    """Raises IllegalTransition unless the table has an arrow from ``state`` to ``new``."""
    if rewinds and new is S.RECOVERING and state in REWINDS:
        return
    if new not in ARROWS[state]:
        allowed = ", ".join(ARROWS[state]) or "nothing, it has ended"
        raise IllegalTransition(f"run {run_id} is {state}: it cannot become {new} (only {allowed})", state=state)
