"""What every test stands on."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler.loadscope import LoadScopeScheduling
from xdist.workermanage import WorkerController

ROOT = Path(__file__).parents[1]

# The files of tests on VMs that take longest: half a minute to three each. The first one needs no image: whoever begins
# with it need not wait until the other process has built one.
LONG = (
    "test_below", "test_fork", "test_suspend", "test_durable_run", "test_demo", "test_network", "test_remote",
    "test_care", "test_roads", "test_machine", "test_run", "test_run_forks", "test_many", "test_views", "test_volumes",
    "test_kill", "test_idle", "test_isolation", "test_lost_server", "test_parts_die", "test_unmodified",
    "test_run_output", "test_fittings", "test_template", "test_image_config",
)  # fmt: skip

# How fast examples are made says how busy the machine is, and nothing about the code. Each run makes others: what few
# of them miss the next ones find, and `make campaign`. Slow tests make a fraction of them.
settings.register_profile(
    "perdure",
    max_examples=int(os.environ.get("EXAMPLES", "30")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("perdure")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Last())
    # A shell starts what is put in the background (as CI may be) with SIGINT ignored, and programs inherit that: the
    # ones that tests start are in the foreground, where Ctrl-C ends them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What tests start is compiled once, and not at each of some thousand starts: that was a quarter of their time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


class _Last:
    """pytest says nothing of what had failed after an error of its own or of xdist's. A log of which only the end is
    kept has it here."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.broken = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid} ({report.when}): {report.longreprtext[-300:]}")

    def pytest_internalerror(self, excrepr: object) -> None:
        self.broken = self.broken or str(excrepr)[-3000:]  # the first one: others follow from it

    def pytest_unconfigure(self) -> None:
        if self.broken:
            print("", self.broken, *self.failed[-5:], sep="\n")


def _needs_vm(path: str) -> bool:
    return path.startswith("tests/vm/") or path.endswith("/test_below.py")


class _Groups(LoadScopeScheduling):
    """A group is a file. Two processes run those on VMs, and the others when none of these are left; the rest runs only
    others, so that all have work until the end: more emulated hosts than two fight for the processors.

    ``--dist loadgroup`` does not group under pytest 9.2: pytest-xdist 3.8 writes the group into a name that is not read
    any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]

    def remove_node(self, node: WorkerController) -> str | None:
        # xdist would give what a process that crashed has finished to the others, which wait for work in it for ever
        work = self.assigned_work[node]
        for path in [path for path, tests in work.items() if all(tests.values())]:
            del work[path]
        return super().remove_node(node)

    def _next(self, node: WorkerController) -> str | None:
        """The group that this process is to run next. None: there is no more for it."""
        has_vms = self.nodes.index(node) < 2
        wished = next((path for path in self.workqueue if _needs_vm(path) is has_vms), None)
        return wished if wished is not None or not has_vms else next(iter(self.workqueue), None)

    def _assign_work_unit(self, node: WorkerController) -> None:
        path = self._next(node)
        if path is not None:  # at the start there may be more processes than work
            self.workqueue.move_to_end(path, last=False)
            super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        if self.workqueue and self._next(node) is None:
            node.shutdown()  # nothing that is left is for it; asked again, this does nothing
        else:
            super()._reschedule(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Groups:
    return _Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``--no-loadscope-reorder`` groups are begun in this order: the longest first, so that no process is left
    alone with one of them at the end."""
    items.sort(key=_turn)  # it leaves the order within a file


def _turn(item: pytest.Item) -> int:
    path = item.nodeid.partition("::")[0]
    if not _needs_vm(path):
        return 0
    return 1 + (LONG.index(Path(path).stem) if Path(path).stem in LONG else len(LONG))


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
