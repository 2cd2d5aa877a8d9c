"""Who imports the clients of stores: nobody, until a store of their kind is opened."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "obstore",
    "urllib3",
    "perdure.execution.snapshots.stores.bucket",
    "perdure.execution.snapshots.stores.registry",
    "perdure.execution.registry.wire",
}


def imported(code: str) -> set[str]:
    argv = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "module",
    ["perdure.node.daemon", "perdure.execution.snapshots.transfer", "perdure.execution.snapshots.fetching",
     "perdure.keeper.launcher", "perdure.cli.fcrun", "perdure.cli.perdure", "perdure.client.node"],
)  # fmt: skip
def test_nobody_imports_them_at_the_start(module: str) -> None:
    assert imported(f"import {module}") & HEAVY == set()


@pytest.mark.parametrize(
    ("url", "library", "not_its"),
    [
        ("/folder", "", {"obstore", "urllib3"}),
        ("s3://bucket", "obstore", {"urllib3"}),
        ("oci://host/x", "urllib3", {"obstore"}),
    ],
)
def test_each_store_brings_its_own(url: str, library: str, not_its: set[str]) -> None:
    found = imported(f"from perdure.execution.snapshots.stores import open_store; open_store({url!r})")
    assert not library or library in found
    assert found & not_its == set()
