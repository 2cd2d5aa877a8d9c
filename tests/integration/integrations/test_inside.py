"""A framework inside an agent's function: its sessions in memory are as durable as the function is."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from perdure.host.paths import Home
from perdure.testing.house import Provider
from perdure.testing.house_fixtures import provider
from perdure.testing.workers import WorkerHouse

pytest.importorskip("langgraph.graph", reason="langgraph is not installed")

__all__ = ["provider"]

GRAPH = """
from operator import add
from typing import Annotated, TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt


class State(TypedDict):
    notes: Annotated[list[str], add]


def f(ctx: Context):
    def think(state: State):
        ctx.step("count", lambda: open(LEDGER, "a").write("x"))
        return {"notes": [ctx.chat("What are owls?").text]}

    def ask(state: State):
        return {"notes": [interrupt("Publish?")]}

    graph = StateGraph(State).add_node(think).add_node(ask)
    graph.add_edge(START, "think").add_edge("think", "ask")
    agent = graph.compile(checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "owls"}}
    told = agent.invoke({"notes": []}, thread)
    verdict = ctx.approval(told["__interrupt__"][0].value)
    return agent.invoke(Command(resume=verdict.comment), thread)["notes"]
"""


@pytest.fixture
async def road(tmp_path: Path, provider: Provider) -> AsyncIterator[WorkerHouse]:
    made = WorkerHouse(Home(tmp_path / "home", tmp_path / "cache"), provider.url)
    await made.up()
    yield made
    await made.down()


async def test_a_graph_in_a_function_that_runs_again(road: WorkerHouse, provider: Provider, tmp_path: Path) -> None:
    """Parked at an interrupt, killed there, and gone on with: what its nodes did is done once."""
    ledger = tmp_path / "ledger"
    road.settings = replace(road.settings, idle_grace_s=60.0)
    await road.down()
    await road.up()
    run_id = await road.start(f"LEDGER = {str(ledger)!r}\n" + GRAPH)
    await road.until(run_id, "wait.started")
    os.kill(road.worker(run_id), signal.SIGKILL)
    await road.until(run_id, "run.waiting", 2)
    await road.engine.approve(run_id, None, approved=True, comment="yes")
    assert await road.result(run_id) == ["answer to What are owls?", "yes"]
    assert provider.requests == 1 and ledger.read_text() == "x"
