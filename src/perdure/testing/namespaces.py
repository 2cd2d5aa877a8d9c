"""Code that runs in a network of its own, made for one test: nothing of it touches the machine's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def require_rights() -> None:
    """Skip the test where this user may make no network namespaces."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")


def run(program: str, *, timeout_s: float = 60.0) -> str:
    """Run a Python program in a new network namespace; what it prints. Its failure fails the test."""
    before = "from perdure.linux import namespaces; namespaces.leave_network()\n"
    done = subprocess.run([sys.executable, "-c", before + program], capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr
    return done.stdout
