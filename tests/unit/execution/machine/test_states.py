from __future__ import annotations

import itertools

import pytest

from perdure.errors import IllegalTransition
from perdure.execution.machine import states
from perdure.execution.machine.states import ARROWS, MachineEvent, MachineState, after


@pytest.mark.parametrize("pair", list(itertools.product(MachineState, MachineEvent)))
def test_every_pair_is_an_arrow_or_an_error(pair: tuple[MachineState, MachineEvent]) -> None:
    if pair in ARROWS:
        assert after(*pair) is ARROWS[pair]
    else:
        with pytest.raises(IllegalTransition) as refused:
            after(*pair)
        assert refused.value.details == {"state": str(pair[0])}


def test_every_state_is_reached_and_can_be_ended() -> None:
    assert set(ARROWS.values()) == set(MachineState)
    assert all(after(state, MachineEvent.END) is MachineState.EMPTY for state in MachineState)


def test_the_drawing_names_every_state_and_event() -> None:
    assert states.__doc__ is not None
    for name in [*MachineState, *MachineEvent]:
        assert str(name) in states.__doc__
