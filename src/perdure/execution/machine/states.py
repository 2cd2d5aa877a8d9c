"""States of one machine (one Firecracker process), as a table. Light: keepers import it.

    empty ──start──> starting ──started──> running <──pause/continue──> paused
      ^                 │ failed              │ died                       │ died
      ├─────────────────┘                     v                            │
      └──────────────────end────────────── exited <────────────────────────┘      (end: from every state to empty)

*empty*: no Firecracker, everything released. *exited*: it ended by itself; the cause is recorded until ``end``.
"""

from __future__ import annotations

from enum import StrEnum

from perdure.errors import IllegalTransition


class MachineState(StrEnum):
    EMPTY = "empty"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"


class MachineEvent(StrEnum):
    START = "start"  # a boot or a restore begins
    STARTED = "started"
    FAILED = "failed"  # it did not come up; everything was released
    PAUSE = "pause"
    CONTINUE = "continue"
    DIED = "died"
    END = "end"


_S, _E = MachineState, MachineEvent
ARROWS: dict[tuple[MachineState, MachineEvent], MachineState] = {
    (_S.EMPTY, _E.START): _S.STARTING,
    (_S.STARTING, _E.STARTED): _S.RUNNING,
    (_S.STARTING, _E.FAILED): _S.EMPTY,
    (_S.RUNNING, _E.PAUSE): _S.PAUSED,
    (_S.PAUSED, _E.CONTINUE): _S.RUNNING,
    (_S.RUNNING, _E.DIED): _S.EXITED,
    (_S.PAUSED, _E.DIED): _S.EXITED,
    **{(state, _E.END): _S.EMPTY for state in MachineState},
}


def after(state: MachineState, event: MachineEvent) -> MachineState:
    """The state that an event leads to. Raises IllegalTransition when the table has no such arrow."""
    try:
        return ARROWS[state, event]
    except KeyError:
        raise IllegalTransition(f"a machine that is {state} cannot take: {event}", state=str(state)) from None
