"""What Firecracker is asked for, from what a node says."""

from __future__ import annotations

import pytest

from perdure.errors import InvalidValue
from perdure.execution.machine import configuration


def test_limits_of_drives_are_buckets_of_a_second() -> None:
    assert configuration.disk_limits({}) == {}
    assert configuration.disk_limits({"disk": {"bytes_per_s": 1 << 20, "ops_per_s": 0}}) == {
        "bandwidth": {"size": 1 << 20, "refill_time": 1000},
        "ops": {"size": 0, "refill_time": 0},  # which takes away what a snapshot may have
    }


@pytest.mark.parametrize(
    "disk",
    [[], 1, {}, {"bytes_per_s": 1}, {"bytes_per_s": -1, "ops_per_s": 0}, {"bytes_per_s": 0, "ops_per_s": 1 << 41}],
)
def test_limits_of_drives_that_are_none(disk: object) -> None:
    with pytest.raises(InvalidValue, match=r"disk|bytes_per_s|ops_per_s"):
        configuration.disk_limits({"disk": disk})
