"""What every test stands on."""

from __future__ import annotations

import fcntl
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]

# The files of tests on VMs that take longest: a minute or two each.
LONG = (
    "test_care", "test_durable_run", "test_remote", "test_fork", "test_many", "test_below", "test_demo", "test_suspend",
    "test_run", "test_kill", "test_machine",
)  # fmt: skip

# How fast examples are made says how busy the machine is, and nothing about the code.
settings.register_profile("perdure", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("perdure")


def pytest_configure() -> None:
    # A shell starts what is put in the background (as CI may be) with SIGINT ignored, and programs inherit that: the
    # ones that tests start are in the foreground, where Ctrl-C ends them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For ``--dist loadgroup``: what needs no VM is one group, each file of the others another. So one process runs VMs
    from the start, the other one helps it later, and two emulated hosts seldom fight for the processors.

    With ``--no-loadscope-reorder`` groups are begun in this order: the longest first, so that no process is left alone
    with one of them at the end.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.stem if item.get_closest_marker("vm") else "no-vm"))
    items.sort(key=_turn)  # it leaves the order within a file


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("vm") is None:
        return 0
    return 1 + (LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def built(part: str) -> Path:
    """The folder with the test binaries of a part in C (with sanitizers), built by gcc."""
    folder = ROOT / "build" / part
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "test.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests may be spread over several processes
        subprocess.run(["make", "-s", "-C", str(ROOT / part), "test"], check=True)
    return folder


@pytest.fixture(scope="session")
def pager_build() -> Path:
    """The folder with ``pager-test``, ``fuzz`` and ``peer``."""
    return built("pager")


@pytest.fixture(scope="session")
def collector_program() -> Path:
    """The collector with sanitizers."""
    return built("collector") / "collector-test"


@pytest.fixture(scope="session")
def guest_build() -> Path:
    """The folder with ``guestd-test`` and ``fuzz``."""
    return built("guest")


@pytest.fixture
def pager_program(pager_build: Path) -> Path:
    """The pager with sanitizers: a report of theirs ends it with another status, and is on its stderr."""
    return pager_build / "pager-test"
