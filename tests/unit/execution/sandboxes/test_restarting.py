"""Which sandboxes are started again, and when."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.errors import InvalidValue
from perdure.execution.sandboxes import restarting
from perdure.execution.sandboxes.record import Record
from perdure.model import SandboxSpec, SandboxState


def record(policy: str, **values: Any) -> Record:
    made: dict[str, Any] = {"state": SandboxState.EXITED, "cause": "exit", "exit_status": 0}
    made |= {"started": 100.0, "finished": 101.0}
    spec = SandboxSpec(image="i", restart=policy)
    return Record(id="0123456789ab", name="box", spec=spec, image_digest="", created=1.0, **(made | values))


DIED: dict[str, Any] = {"cause": "machine-died", "exit_status": None}
NEVER_RAN: dict[str, Any] = {"cause": "start-failed", "exit_status": 127, "started": None, "finished": 1e9}


@pytest.mark.parametrize(
    ("policy", "values", "due", "as_the_node_starts"),
    [
        ("", {"exit_status": 1}, False, False),
        ("no", {"exit_status": 1}, False, False),
        ("always", {}, True, True),
        ("always", {"cause": "stopped"}, False, True),
        ("always", {"cause": "killed", "exit_status": 137}, False, True),
        ("always", {"state": SandboxState.SUSPENDED}, False, False),
        ("always", {"state": SandboxState.RUNNING}, False, False),
        ("always", DIED, True, True),
        ("unless-stopped", {}, True, True),
        ("unless-stopped", {"cause": "stopped"}, False, False),
        ("unless-stopped", DIED, True, True),
        ("on-failure", {}, False, False),
        ("on-failure", {"exit_status": 3}, True, True),
        ("on-failure", {"exit_status": 143, "cause": "stopped"}, False, False),
        ("on-failure", DIED, True, True),
        ("on-failure:2", {"exit_status": 3, "restarts": 1}, True, True),
        ("on-failure:2", {"exit_status": 3, "restarts": 2}, False, False),
        ("on-failure:2", {"exit_status": 3, "restarts": 2, "finished": 200.0}, True, True),  # it had settled
        ("on-failure", {"exit_status": 3, "restarts": 1000}, True, True),
        ("always", NEVER_RAN, False, False),  # a start that somebody asked for
        ("always", {**NEVER_RAN, "restarts": 1}, True, True),
        ("on-failure:3", {**NEVER_RAN, "restarts": 2}, True, True),
        ("on-failure:3", {**NEVER_RAN, "restarts": 3}, False, False),
    ],
)
def test_what_is_due(policy: str, values: dict[str, Any], due: bool, as_the_node_starts: bool) -> None:
    found = record(policy, **values)
    assert restarting.due(found) is due
    assert restarting.due(found, node_starts=True) is as_the_node_starts


def test_each_wait_is_twice_as_long_as_the_one_before() -> None:
    assert [restarting.delay_s(number) for number in (0, 1, 2, 9, 10, 10**6)] == [0.1, 0.2, 0.4, 51.2, 60.0, 60.0]


def test_what_never_ran_has_not_settled() -> None:
    assert restarting.in_a_row(record("always", **NEVER_RAN, restarts=50)) == 50


@pytest.mark.parametrize("policy", ["", "no", "always", "unless-stopped", "on-failure", "on-failure:3"])
def test_policies(policy: str) -> None:
    restarting.check(SandboxSpec(image="i", restart=policy))


@pytest.mark.parametrize("policy", ["Always", "on-failure:", "on-failure:-1", "on-failure:x", "unless", "always:3"])
def test_what_is_no_policy(policy: str) -> None:
    with pytest.raises(InvalidValue, match="restart is"):
        restarting.check(SandboxSpec(image="i", restart=policy))


def test_what_is_removed_is_not_started_again() -> None:
    with pytest.raises(InvalidValue):
        restarting.check(SandboxSpec(image="i", restart="always", auto_remove=True))
