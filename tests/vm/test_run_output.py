"""What a run in a real microVM prints, followed while its server and its machine are killed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from perdure.host.paths import Home
from perdure.model import ExecSpec, OutputPiece, RunState
from perdure.testing.durable_runs import DEADLINE_S, Run, kill_server, server, start_run

__all__ = ["server", "start_run"]

pytestmark = pytest.mark.vm

AGENT = """
import os, time
from perdure import agent

@agent()
def tells(ctx):
    print("one")
    ctx.approval("Go on?")
    print("two")
    ctx.step("hold", hold)
    print("three")

def hold():
    while not os.path.exists("/go"):
        time.sleep(0.05)
"""


@pytest.mark.timeout(600)
def test_it_is_followed_while_its_server_and_its_machine_are_killed(
    home: Home, start_run: Callable[..., Run], kill_below: Callable[[int], None]
) -> None:
    run, told = start_run(source=AGENT, file="tells.py", function="tells"), list[OutputPiece]()

    def read() -> None:
        told.extend(run.server.printed(run.id, follow=True))

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        run.wait_for("run.suspended")
        kill_server(home)
        run.server.approve(run.id)
        run.wait_for("step.intent")
        sandbox = run.node.get(run.info().sandbox_id)
        until(lambda: b"two" in run.server.output(run.id))
        kill_below(sandbox.machine["firecracker_pid"])
        run.wait_for("run.recovering")
        until(lambda: run.server.output(run.id).count(b"two") == 2)
        assert run.node.run(sandbox.id, ExecSpec(command=["touch", "/go"]))[0] == 0
        assert run.ends().state is RunState.COMPLETED
        reading.result(DEADLINE_S)
    assert b"".join(piece.data for piece in told) == b"one\ntwo\ntwo\nthree\n"
    pairs = list(itertools.pairwise(told))
    assert all(one.life == sandbox.id and one.end == other.offset for one, other in pairs)
    back = [(other.offset, other.at) for one, other in pairs if other.at != one.at + len(one.data)]
    assert back == [(8, 4)]  # its snapshot was taken when it had written 4 bytes
    assert run.is_gone()
    (rest,) = run.server.printed(run.id, life=sandbox.id, offset=9)
    assert (rest.offset, rest.data) == (9, b"wo\nthree\n")


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
