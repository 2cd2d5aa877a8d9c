"""What fits on a node."""

from __future__ import annotations

import pytest

from perdure.errors import NoRoom
from perdure.execution.sandboxes.admission import Admission, Limits

HOST_BYTES = 1 << 30


def test_the_memory_of_all_that_run_is_a_multiple_of_the_hosts() -> None:
    live = {"a": 1024, "b": 512}
    admission = Admission(lambda: live, Limits(overcommit=2.0))
    with admission.room("c", 512, HOST_BYTES):
        with pytest.raises(NoRoom, match="a sandbox of 1 MiB of memory does not fit: 0 of 2048 MiB are free, 3 ") as no:
            admission.check({"d": 1}, HOST_BYTES)  # what is about to run has its room already
        assert (no.value.details["needed_mib"], no.value.details["free_mib"]) == (1, 0)
        assert "settings.toml" in no.value.hint and "fcrun ps" in no.value.hint
        admission.check({"c": 512}, HOST_BYTES)
    admission.check({"d": 512}, HOST_BYTES)  # it never came to run
    admission.check({"d": 256, "e": 256}, HOST_BYTES)
    with pytest.raises(NoRoom, match="2 sandboxes of 513 MiB"):
        admission.check({"d": 257, "e": 256}, HOST_BYTES)
    admission.check({"a": 1024}, 1)  # it has a machine, and its next one takes that one's place
    live.clear()
    admission.check({"d": 2048}, HOST_BYTES)


def test_a_fixed_limit_comes_before_the_hosts_memory() -> None:
    admission = Admission(limits=Limits(memory_mib=100))
    with pytest.raises(NoRoom):
        admission.check({"a": 101}, HOST_BYTES)
    with pytest.raises(NoRoom):
        admission.check({"a": 101}, 0)
    admission.check({"a": 100}, 1)


def test_where_the_hosts_memory_is_not_known_nothing_is_refused_for_it() -> None:
    Admission().check({"a": 1 << 20}, 0)


def test_the_number_of_machines_has_a_limit() -> None:
    admission = Admission(lambda: {"a": 1, "b": 1}, Limits(machines_max=3))
    admission.check({"c": 1}, HOST_BYTES)
    with pytest.raises(NoRoom, match="2 sandboxes more would be 4 running ones, and this node runs at most 3"):
        admission.check({"c": 1, "d": 1}, HOST_BYTES)
