"""Kill -9 of the microVM, and of the server, at every event of streamed turns: the provider holds each event back."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable

import pytest
from aiohttp import web

from perdure.cli.perdure._image import ensure_default
from perdure.model import RunState
from perdure.testing import speeches
from perdure.testing.durable_runs import DEADLINE_S, Run, Scripted, kill_server, scripted
from perdure.testing.scripted import Act, ScriptedProvider

__all__ = ["scripted"]

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]
WORDS = ["Owls ", "hunt ", "mice ", "by ", "night."]
EVENTS = speeches.chat_events(*WORDS)
PLACES = range(len(EVENTS))
PARTS = ("firecracker_pid", "keeper_pid")
CAUSES = {"machine-died", "keeper-died"}
AGENT = """
from perdure import agent

@agent()
def listener(ctx, turns):
    told = []
    for number in range(turns):
        heard = []
        turn = ctx.chat(f"turn {number}", on_delta=heard.append)
        told.append([turn.text, "".join(heard)])
    return told
"""


class Held:
    """What becomes of a provider's answers, told across threads; ``answered``: the questions that had one whole."""

    def __init__(self, provider: ScriptedProvider) -> None:
        self._provider = provider
        self._happened: queue.Queue[str] = queue.Queue()
        self.answered: list[str] = []

    def next(self) -> str:
        return self._happened.get(timeout=DEADLINE_S)

    def act(self, place: int | None = None) -> Act:
        """A stream that is held in front of the event at ``place``, until ``provider.go_on``."""
        streams = self._provider.streams(EVENTS, hold_after=place)

        async def act(request: web.Request) -> web.StreamResponse:
            question = (await request.json())["messages"][-1]["content"]
            told = asyncio.create_task(self._tell(place))
            try:
                response = await streams(request)
            except asyncio.CancelledError:
                self._provider.go_on()  # nobody is held: what comes next is told anew
                self._happened.put("cut")
                raise
            finally:
                told.cancel()
            self.answered.append(question)
            return response

        return act

    async def _tell(self, place: int | None) -> None:
        if place is not None:
            await self._provider.reached.wait()
            self._happened.put("held")


def test_the_text_is_the_same_and_each_turn_is_answered_once(
    scripted: Scripted, kill_below: Callable[[int], None]
) -> None:
    provider = scripted.provider
    held = Held(provider)
    for place in PLACES:  # a turn in which the machine is killed, and one for the server, which is asked once more
        provider.acts += [held.act(place), held.act(place), held.act()]
    source = {"source": AGENT, "file": "listener.py", "function": "listener"}
    run = scripted.start(image=ensure_default(), input={"turns": 2 * len(PLACES)}, **source)
    for number, _ in enumerate(PLACES, 1):
        assert held.next() == "held"
        kill_below(run.node.get(run.info().sandbox_id).machine[PARTS[number % 2]])
        assert run.wait_for("run.recovering", number).payload["cause"] in CAUSES
        scripted.do(provider.go_on)
        assert held.next() == "held"
        kill_server(scripted.home)
        assert held.next() == "cut"
    check(run, held)


def check(run: Run, held: Held) -> None:
    info = run.ends()
    turns, text = 2 * len(PLACES), "".join(WORDS)
    assert (info.state, info.result) == (RunState.COMPLETED, [[text, text]] * turns), info
    assert held.answered == [f"turn {number}" for number in range(turns)]
    assert (info.recoveries, info.turns_asked) == (len(PLACES), turns + len(PLACES))
    entries = list(run.server.entries(run.id))
    asked = [entry.key for entry in entries if entry.kind == "model.intent"]
    assert len(set(asked)) == turns
    for number, key in enumerate(asked):
        kinds = [entry.kind for entry in entries if entry.key == key]
        committed = [entry.payload["text"] for entry in entries if entry.key == key and entry.kind == "model.committed"]
        assert committed == [text]
        assert kinds.count("model.started") == 1 + number % 2  # a server that dies takes its connection with it
        assert ("model.aborted" in kinds) == bool(
            number % 2
        )  # the attempt that was cut is there, and no part of the other
    assert run.server.verify(run.id)["entries"] == len(entries)
    assert run.is_gone()
