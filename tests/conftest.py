"""What every test stands on."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How fast examples are made says how busy the machine is, and nothing about the code.
settings.register_profile("perdure", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("perdure")


def pytest_configure() -> None:
    # A shell starts what is put in the background (as CI may be) with SIGINT ignored, and programs inherit that: the
    # ones that tests start are in the foreground, where Ctrl-C ends them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def pager_build() -> Path:
    """The folder with ``pager-test`` (with sanitizers), ``fuzz`` and ``peer``, built by gcc."""
    if not shutil.which("gcc") or not shutil.which("make"):
        pytest.skip("gcc and make build the pager's test binaries")
    root = Path(__file__).parents[1]
    subprocess.run(["make", "-s", "-C", str(root / "pager"), "test"], check=True)
    return root / "build/pager"


@pytest.fixture(scope="session")
def collector_program() -> Path:
    """The collector with sanitizers, built by gcc."""
    if not shutil.which("gcc") or not shutil.which("make"):
        pytest.skip("gcc and make build the collector's test binary")
    root = Path(__file__).parents[1]
    subprocess.run(["make", "-s", "-C", str(root / "collector"), "test"], check=True)
    return root / "build/collector/collector-test"


@pytest.fixture
def pager_program(pager_build: Path) -> Path:
    """The pager with sanitizers: a report of theirs ends it with another status, and is on its stderr."""
    return pager_build / "pager-test"
