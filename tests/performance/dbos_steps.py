"""DBOS doing the same as ``bench_replay``: ``python dbos_steps.py live|recover URL STEPS``, with its own Python.

live: a workflow of STEPS steps; prints the seconds that they took, and ends with kill -9 while it waits for a message.
recover: launches on that database and prints the seconds until the same workflow waits there again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from dbos import DBOS

mode, database, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
DBOS(config={"name": "bench", "system_database_url": database, "log_level": "ERROR"})
reached = threading.Event()
took_s = 0.0


@DBOS.step()
def one(number: int) -> int:
    return number


@DBOS.workflow()
def flow(count: int) -> None:
    global took_s
    begun = time.perf_counter()
    for number in range(count):
        one(number)
    took_s = time.perf_counter() - begun
    reached.set()
    DBOS.recv("go", timeout_seconds=3600)


begun = time.perf_counter()
DBOS.launch()  # takes up what was interrupted
if mode == "live":
    DBOS.start_workflow(flow, steps)
if not reached.wait(600):
    sys.exit("the workflow does not come to its end")
print(took_s if mode == "live" else time.perf_counter() - begun, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
