"""The states of a sandbox, as a table.

A state is written to disk before the work that it names begins, and the next one when that work is durable. So what a
killed node left half-done is told from the state alone:

- ``starting``: its main process may run already. Found in the guest: *started*; otherwise *died*.
- ``paused``: found running (it was just about to go on) it is paused again.
- ``suspending``: not accepted yet. The machine lives: *refused* (it thaws and goes on); otherwise *died*.
- ``resuming``: rolled back, *refused*: the snapshot is still there; *refused, exited* where it had exited before.
- ``removing``: done again to its end.

A *checkpoint* leaves the state alone: of a node that was killed within one, the next thaws what it finds frozen.

``exited`` is left by *start* (a new boot on its files) or *resume* (from a snapshot, memory and all).
"""

from __future__ import annotations

from perdure.errors import IllegalTransition
from perdure.model import SandboxState as S

TRANSITIONS: dict[tuple[S, str], S] = {
    (S.CREATED, "start"): S.STARTING,
    (S.EXITED, "start"): S.STARTING,
    (S.STARTING, "started"): S.RUNNING,
    (S.STARTING, "died"): S.EXITED,
    (S.RUNNING, "exited"): S.EXITED,
    (S.RUNNING, "died"): S.EXITED,
    (S.RUNNING, "pause"): S.PAUSED,
    (S.PAUSED, "unpause"): S.RUNNING,
    (S.PAUSED, "exited"): S.EXITED,
    (S.PAUSED, "died"): S.EXITED,
    (S.RUNNING, "suspend"): S.SUSPENDING,
    (S.PAUSED, "suspend"): S.SUSPENDING,
    (S.SUSPENDING, "suspended"): S.SUSPENDED,
    (S.SUSPENDING, "refused"): S.RUNNING,
    (S.SUSPENDING, "died"): S.EXITED,
    (S.RUNNING, "checkpoint"): S.RUNNING,
    (S.SUSPENDED, "resume"): S.RESUMING,
    (S.EXITED, "resume"): S.RESUMING,
    (S.RUNNING, "roll back"): S.RESUMING,
    (S.RESUMING, "resumed"): S.RUNNING,
    (S.RESUMING, "refused"): S.SUSPENDED,
    (S.RESUMING, "refused, exited"): S.EXITED,
    (S.CREATED, "remove"): S.REMOVING,
    (S.EXITED, "remove"): S.REMOVING,
    (S.SUSPENDED, "remove"): S.REMOVING,
    (S.REMOVING, "remove"): S.REMOVING,
}

LIVE = frozenset({S.STARTING, S.RUNNING, S.PAUSED, S.SUSPENDING, S.RESUMING})
"""States in which a machine may exist."""

_HINTS: dict[tuple[S, str], str] = {
    (S.RUNNING, "remove"): "Stop it first, or remove it with --force.",
    (S.RUNNING, "start"): "It runs already.",
    (S.RUNNING, "resume"): "It runs already.",
    (S.RUNNING, "unpause"): "It runs already.",
    (S.PAUSED, "pause"): "It is paused already.",
    (S.PAUSED, "start"): "Let it go on with `fcrun unpause`.",
    (S.PAUSED, "resume"): "Let it go on with `fcrun unpause`.",
    (S.PAUSED, "checkpoint"): "Let it go on first: fcrun unpause",
    (S.PAUSED, "remove"): "Stop it first, or remove it with --force.",
    (S.SUSPENDED, "pause"): "Nothing of it runs: it is suspended.",
    (S.SUSPENDED, "unpause"): "Go on with `fcrun resume`.",
    (S.SUSPENDED, "start"): "Its memory is kept: go on with `fcrun resume`.",
    (S.SUSPENDED, "suspend"): "It is suspended already.",
    (S.CREATED, "suspend"): "It has not run yet: `fcrun start` it first.",
    (S.CREATED, "checkpoint"): "It has not run yet: `fcrun start` it first.",
    (S.SUSPENDED, "checkpoint"): "It is suspended: that snapshot is its checkpoint.",
    (S.CREATED, "resume"): "It has not run yet: `fcrun start` it first.",
}


def after(state: S, event: str, *, name: str) -> S:
    """The state that follows. Raises IllegalTransition for a pair that is not in the table."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(
            f"sandbox {name} is {state}: it cannot {event}", hint=_HINTS.get((state, event), ""), state=str(state)
        ) from None
