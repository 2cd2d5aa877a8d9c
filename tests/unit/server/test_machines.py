"""The node's client in the server's threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# A process of its own each time: msgspec learns types once. Without ``settle`` a third of them ended with SIGSEGV.
FIRST_ANSWERS = """
import sys, threading
from pathlib import Path
import msgspec
from perdure.host.paths import Home
from perdure.model import SandboxInfo
from perdure.server.machines import NodeMachines

machines = NodeMachines(Home(Path(sys.argv[1]), Path(sys.argv[1])))
sys.setswitchinterval(1e-6)
calls = {"url": "u", "run_id": "r", "epoch": 1, "token": "t"}
answer = {"id": "a", "name": "b", "spec": {"image": "x", "calls": calls}, "state": "running", "created": 1.0}
all_at_once = threading.Barrier(16)

def take():
    all_at_once.wait()
    msgspec.convert(answer, SandboxInfo)

threads = [threading.Thread(target=take) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
machines.close()
"""


def test_the_first_answers_may_come_in_many_threads_at_once(tmp_path: Path) -> None:
    for _ in range(12):
        done = subprocess.run([sys.executable, "-c", FIRST_ANSWERS, str(tmp_path)], timeout=60, check=False)
        assert done.returncode == 0
