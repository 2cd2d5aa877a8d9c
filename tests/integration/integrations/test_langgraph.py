"""LangGraph's checkpoints in a real server's log: the framework's own conformance suite, and graphs."""

from __future__ import annotations

import asyncio
import operator
import sqlite3
from collections.abc import AsyncGenerator
from secrets import token_urlsafe
from typing import Annotated, Any, TypedDict
from uuid import uuid4

import pytest

pytest.importorskip(
    "langgraph.checkpoint.conformance", reason="langgraph is not installed: pip install -e '.[frameworks]'"
)

from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.report import ProgressCallbacks
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from perdure.client.server import ServerClient
from perdure.errors import Conflict, InvalidValue, Unavailable
from perdure.integrations.langgraph import PerdureSaver
from perdure.testing.logservers import LogServer


class State(TypedDict):
    said: Annotated[list[str], operator.add]
    count: int


def thread() -> Any:
    return {"configurable": {"thread_id": f"thread/{uuid4()}"}}


def graph(saver: BaseCheckpointSaver[str]) -> Any:
    def think(state: State) -> dict[str, Any]:
        return {"said": [f"thought {state['count']}"], "count": state["count"] + 1}

    def ask(state: State) -> dict[str, Any]:
        return {"said": [interrupt("go on?")]}

    built = StateGraph(State)
    built.add_node("think", think)
    built.add_node("ask", ask)
    built.add_edge(START, "think")
    built.add_edge("think", "ask")
    built.add_edge("ask", END)
    return built.compile(checkpointer=saver)


async def test_it_conforms(log_server: LogServer) -> None:
    @checkpointer_test(name="PerdureSaver")
    async def saver() -> AsyncGenerator[PerdureSaver]:
        yield PerdureSaver(log_server.client)

    told: list[str | None] = []
    report = await validate(saver, progress=ProgressCallbacks(on_test_result=lambda *result: told.append(result[3])))
    assert not [error for error in told if error]
    assert report.passed_all()
    assert len(report.results) == 8


def test_a_graph_goes_on_in_another_process_after_an_interrupt_and_a_kill(log_server: LogServer) -> None:
    config = thread()
    told = graph(PerdureSaver(log_server.client)).invoke({"said": ["hello"], "count": 0}, config)
    assert told["__interrupt__"][0].value == "go on?"
    log_server.kill()
    with pytest.raises(Unavailable, match="does not answer"):
        graph(PerdureSaver(log_server.client)).get_state(config)
    log_server.start()
    again = graph(PerdureSaver(ServerClient(log_server.home)))
    assert again.get_state(config).next == ("ask",)
    assert again.invoke(Command(resume="yes"), config)["said"] == ["hello", "thought 0", "yes"]
    history = list(again.get_state_history(config))
    assert [len(one.values.get("said", [])) for one in history] == [3, 2, 1, 0]
    earlier = again.invoke(None, history[2].config)
    assert earlier["__interrupt__"][0].value == "go on?"


def test_a_conversation_that_grows_costs_what_is_new_of_it(log_server: LogServer) -> None:
    if log_server.database:
        pytest.skip("what is stored is the same on each database, and looked at in the file")
    saver, config = PerdureSaver(log_server.client), thread()

    def say(state: State) -> dict[str, Any]:
        return {"said": [token_urlsafe(3000)]}

    built = StateGraph(State)
    built.add_node("say", say)
    built.add_edge(START, "say")
    built.add_edge("say", END)
    compiled, sizes = built.compile(checkpointer=saver), []
    with sqlite3.connect(log_server.home.database) as database:
        for turn in range(24):
            compiled.invoke({"count": turn}, config)
            ((size,),) = database.execute(
                "SELECT (SELECT sum(length(content)) FROM blobs) + (SELECT sum(length(payload)) FROM entries)"
            )
            sizes.append(size)
    database.close()
    assert len(compiled.get_state(config).values["said"]) == 24
    assert sizes[23] - sizes[12] < 1.1 * (sizes[11] - sizes[0])


def test_what_cannot_be_kept_is_named(log_server: LogServer) -> None:
    saver = PerdureSaver(log_server.client)

    class Strange:
        def __reduce__(self) -> Any:
            raise TypeError("not this one")

    with pytest.raises(InvalidValue, match="what is written to channel 'x' cannot be kept"):
        config = saver.put({"configurable": {"thread_id": "s", "checkpoint_ns": ""}}, empty_checkpoint(), {}, {})
        saver.put_writes(config, [("x", Strange())], "task")
    saver.delete_thread("s")


def test_threads_are_forked_and_deleted(log_server: LogServer) -> None:
    saver, config = PerdureSaver(log_server.client), thread()
    compiled = graph(saver)
    compiled.invoke({"said": ["hello"], "count": 0}, config)
    source, target = config["configurable"]["thread_id"], f"copy of {config['configurable']['thread_id']}"
    saver.copy_thread(source, target)
    with pytest.raises(Conflict, match="there is a thread"):
        saver.copy_thread(source, target)
    saver.delete_thread(source)
    assert saver.get_tuple(config) is None
    other: Any = {"configurable": {"thread_id": target}}
    assert compiled.invoke(Command(resume="yes"), other)["said"] == ["hello", "thought 0", "yes"]
    threads = {found.config["configurable"]["thread_id"] for found in saver.list(None)}
    assert target in threads and source not in threads
    saver.prune([target])
    assert len(list(saver.list(other))) == 1
    assert compiled.get_state(other).values["said"] == ["hello", "thought 0", "yes"]


async def test_two_programs_write_to_one_thread(log_server: LogServer) -> None:
    """Nothing is lost: each checkpoint is there, and the last one is the last that was written."""
    savers, config = [PerdureSaver(log_server.client), PerdureSaver(ServerClient(log_server.home))], thread()
    config["configurable"]["checkpoint_ns"] = ""

    async def write(saver: PerdureSaver) -> list[str]:
        made = [await saver.aput(config, empty_checkpoint(), {}, {}) for _ in range(10)]
        return [one["configurable"]["checkpoint_id"] for one in made]

    written = [one for ids in await asyncio.gather(*map(write, savers)) for one in ids]
    found = [one.checkpoint["id"] async for one in savers[0].alist(config)]
    assert sorted(found) == sorted(written)
    last = await savers[1].aget_tuple(config)
    assert last is not None and last.checkpoint["id"] == found[0]


def test_a_thread_is_copied_from_elsewhere_the_last_first(log_server: LogServer) -> None:
    """As ``list`` of another saver gives it."""
    elsewhere, saver, config = InMemorySaver(), PerdureSaver(log_server.client), thread()
    config["configurable"]["checkpoint_ns"] = ""
    graph(elsewhere).invoke({"said": ["hello"], "count": 0}, config)
    for one in elsewhere.list(config):
        parent = one.parent_config["configurable"]["checkpoint_id"] if one.parent_config else None
        above: Any = {"configurable": {**config["configurable"], "checkpoint_id": parent}}
        kept = saver.put(above, one.checkpoint, one.metadata, one.checkpoint["channel_versions"])
        for task, channel, value in one.pending_writes or []:
            saver.put_writes(kept, [(channel, value)], task)
    ids = [one.checkpoint["id"] for one in elsewhere.list(config)]
    target = f"copy of {config['configurable']['thread_id']}"
    saver.copy_thread(config["configurable"]["thread_id"], target)
    for name in (config["configurable"]["thread_id"], target):
        for reader in (saver, PerdureSaver(log_server.client)):
            place: Any = {"configurable": {"thread_id": name}}
            assert [one.checkpoint["id"] for one in reader.list(place)] == ids
            assert [one.checkpoint["id"] for one in reader.list(place, limit=1)] == ids[:1]
            assert reader.get(place) == elsewhere.get(config)
    assert graph(saver).invoke(Command(resume="yes"), config)["said"] == ["hello", "thought 0", "yes"]
    saver.prune([target])
    assert [one.checkpoint["id"] for one in saver.list({"configurable": {"thread_id": target}})] == ids[:1]


def test_the_last_one_of_a_copied_thread_is_gone_with_its_run(log_server: LogServer) -> None:
    saver, config = PerdureSaver(log_server.client), thread()
    config["configurable"]["checkpoint_ns"] = ""
    made = [empty_checkpoint() for _ in range(3)]
    for number, checkpoint in reversed(list(enumerate(made))):
        saver.put(config, checkpoint, {"run_id": f"run {number}"}, {})
    saver.delete_for_runs(["run 2"])
    last = saver.get_tuple(config)
    assert last is not None and last.checkpoint["id"] == made[1]["id"]


@pytest.mark.parametrize("name", [uuid4(), uuid4().int], ids=["uuid", "number"])
async def test_a_thread_is_named_by_what_is_no_text(log_server: LogServer, name: Any) -> None:
    saver, config = PerdureSaver(log_server.client), {"configurable": {"thread_id": name, "checkpoint_ns": ""}}
    saver.put(config, empty_checkpoint(), {}, {})
    saver.copy_thread(name, uuid4())
    saver.prune([name])
    assert saver.get_tuple(config) is not None
    await saver.adelete_thread(name)
    assert saver.get_tuple(config) is None
