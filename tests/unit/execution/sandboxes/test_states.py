"""The table of states: what a killed node left can always be settled, and nothing else is allowed."""

from __future__ import annotations

import itertools

import pytest

from perdure.errors import IllegalTransition
from perdure.execution.sandboxes import states
from perdure.model import SandboxState as S

EVENTS = sorted({event for _, event in states.TRANSITIONS})


@pytest.mark.parametrize(("state", "event"), [*itertools.product(S, EVENTS)])
def test_every_pair_is_in_the_table_or_refused_by_name(state: S, event: str) -> None:
    if (state, event) in states.TRANSITIONS:
        assert states.after(state, event, name="box") is states.TRANSITIONS[state, event]
        return
    with pytest.raises(IllegalTransition, match=f"sandbox box is {state}: it cannot {event}"):
        states.after(state, event, name="box")


def test_every_state_is_reached_and_none_is_a_trap() -> None:
    reached = {S.CREATED}
    while fresh := {after for (before, _), after in states.TRANSITIONS.items() if before in reached} - reached:
        reached |= fresh
    assert reached == set(S)
    leaving = {before for (before, _) in states.TRANSITIONS}
    assert leaving == set(S)


@pytest.mark.parametrize("state", sorted(states.LIVE))
def test_every_live_state_has_a_way_out_when_the_machine_is_gone(state: S) -> None:
    ways = {event for (before, event) in states.TRANSITIONS if before is state}
    assert ways & {"died", "refused"}


def test_a_hint_says_what_to_do() -> None:
    with pytest.raises(IllegalTransition) as caught:
        states.after(S.RUNNING, "remove", name="box")
    assert "--force" in caught.value.hint
