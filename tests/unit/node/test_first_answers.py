"""Threads of a node that are first together to read a kind of value do not end it."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A process of its own each time: msgspec learns types once. Without ``settle`` a part of them ended with SIGSEGV.
FIRST_READ = """
import sys, threading
import msgspec
import perdure.node.daemon
from perdure.model import SandboxInfo, settle

settle()
sys.setswitchinterval(1e-6)
info = {"id": "a", "name": "b", "spec": {"image": "x"}, "state": "running", "created": 1.0}
all_at_once = threading.Barrier(16)

def read():
    all_at_once.wait()
    msgspec.convert(info, SandboxInfo)

threads = [threading.Thread(target=read) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("life", range(4))
def test_many_threads_are_first_together(life: int) -> None:
    ended = subprocess.run([sys.executable, "-c", FIRST_READ], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
