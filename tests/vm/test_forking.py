"""A program in a real microVM that forks itself: each branch has its memory and its files, and is told who it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perdure.client.server import ServerClient
from perdure.model import RunState
from perdure.testing.durable_runs import Run, kill_server, server, start_run

__all__ = ["server", "start_run"]
pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

AGENT = """
import os
import random
from perdure import agent

@agent()
def best(ctx):
    facts = ctx.chat("What do owls hunt?").text
    drawn = random.random()  # only in memory: no log has it
    open("/notes", "w").write("begun ")
    me = ctx.run_id
    forks = ctx.fork(2)
    open("/notes", "a").write(str(forks.number))
    mine = [drawn, os.getpid(), facts, open("/notes").read()]
    if forks.number:
        verdict = ctx.approval("Keep it?")
        return [*mine, ctx.run_id == forks.runs[forks.number - 1], verdict.comment]
    return [[*mine, ctx.run_id == me], *ctx.all(*map(ctx.later.result, forks.runs))]
"""


def test_each_branch_has_the_memory_and_the_files_of_the_call(start_run: Callable[..., Run]) -> None:
    run = start_run(source=AGENT, file="agent.py", function="best", memory_mib=256)
    forks: list[str] = run.wait_for("fork").payload["forks"]
    run.wait_for("run.suspended")
    kill_server(run.home)
    server = ServerClient(run.home)
    for number, fork in enumerate(forks, 1):
        one = Run(run.home, server.get(fork))
        one.wait_for("run.suspended", after=server.get(fork).origin.seq)  # type: ignore[union-attr]  # forks have one
        server.approve(fork, approved=True, comment=f"comment {number}")
    info = run.ends()
    assert info.state is RunState.COMPLETED, info.error
    mine, *others = info.result
    drawn, pid, facts, notes, is_me = mine
    assert notes == "begun 0" and is_me
    assert others == [[drawn, pid, facts, f"begun {n}", True, f"comment {n}"] for n in (1, 2)]
    assert [server.get(fork).turns_asked for fork in forks] == [0, 0]  # its maker was told
    assert {one.id for one in server.runs()} == {run.id, *forks}
