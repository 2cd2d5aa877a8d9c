"""Forged ordinals: a guest that names calls as it likes, through the real guestd, a node's forwarder and a server.

Whatever it sends, it is answered what it asked itself, or refused; no answer of another turn or run comes out, none is
overwritten, and the log verifies.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure.execution.guest.session import GuestCall
from perdure.model import CallsEndpoint, Entry, RunState
from perdure.node.calls import Forwarder
from perdure.testing.guestdoor import AWAKE, waits
from perdure.testing.house import Provider, until
from perdure.testing.house_fixtures import house, provider, served
from perdure.testing.machines import CHAT
from perdure.testing.served import Served

from .conftest import DEADLINE_S, Guest
from .test_calls import client_of, many_files

__all__ = ["house", "many_files", "provider", "served"]
HUGE = "9" * 18  # guestd takes no more digits
REFUSED = (400, 409)


class Forger:
    """A guest, in the name of one of several runs: by its machine's endpoint, which no guest can change."""

    def __init__(self, guest: Guest, served: Served, forwarder: Forwarder) -> None:
        self.served = served
        self._guest, self._forwarder = guest, forwarder

    async def start(self) -> str:
        """A run that stays warm."""
        run_id = await self.served.house.start(waits, policy=AWAKE)
        await self.served.house.waits(run_id, "signal")
        return run_id

    def be(self, run_id: str) -> None:
        """From now on the guest is this run's."""
        engine = self.served.house.engine
        token = engine.endpoint(run_id, 1).token
        endpoint = CallsEndpoint(url=f"{self.served.url}/v1/calls", run_id=run_id, epoch=1, token=token)

        async def answer(call: GuestCall) -> None:
            await self._forwarder.answer(endpoint, call)

        self._guest.answer = answer

    async def ask(self, body: dict[str, Any], headers: dict[str, str], path: str = CHAT) -> tuple[int, Any]:
        data = json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", f"Content-Length: {len(data)}", *(f"{n}: {v}" for n, v in headers.items())]
        async with client_of(self._guest) as client:
            await client.send("\r\n".join([*lines, "", ""]).encode() + data)
            status, answered = await client.answer()
            return status, json.loads(answered)

    async def chat(self, question: str, lane: str = "", ordinal: str = "", **headers: str) -> int:
        """The status. What is answered is what was asked."""
        named = {"Perdure-Lane": lane, "Perdure-Ordinal": ordinal}
        sent = {name.replace("_", "-"): value for name, value in (named | headers).items() if value}
        status, value = await self.ask(chat(question), sent)
        if status == 200:
            assert value["choices"][0]["message"]["content"] == f"answer to {question}"
        else:
            assert status in REFUSED and value["error"]["message"] and value["error"]["type"]
        return status

    async def entries(self, run_id: str) -> dict[int, list[Entry]]:
        """Of each branch."""
        context = self.served.house.context
        branches = await context.branches(run_id)
        return {one.branch: await context.read(run_id, branch=one.branch, limit=100_000) for one in branches}

    async def check(self, run_id: str, before: dict[int, list[Entry]]) -> None:
        """Its log verifies, what was there is there, and each answer is to the question that it stands under."""
        await self.served.house.context.verify(run_id)
        now = await self.entries(run_id)
        for branch, known in before.items():
            assert now[branch][: len(known)] == known
        for found in now.values():
            asked: dict[str | None, str] = {}
            for entry in found:
                if entry.kind == "model.intent":
                    asked[entry.key] = entry.payload["messages"][-1]["content"]
                elif entry.kind == "model.committed":
                    assert entry.payload["text"] == f"answer to {asked[entry.key]}"


def chat(question: str, **also: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], **also}


@pytest.fixture
async def forger(guest: Guest, served: Served) -> AsyncIterator[Forger]:
    forwarder = Forwarder()
    yield Forger(guest, served, forwarder)
    await forwarder.close()


async def test_forged_ordinals(forger: Forger, provider: Provider) -> None:
    theirs, own = await forger.start(), await forger.start()
    forger.be(theirs)
    for number in range(3):
        assert await forger.chat(f"theirs {number}", "l", str(number)) == 200
    kept = await forger.entries(theirs)
    forger.be(own)
    for number in range(3):
        assert await forger.chat(f"own {number}", "l", str(number)) == 200
    before, asked = await forger.entries(own), provider.requests
    assert asked == 6

    # its own turns, again: the same answers, and nobody is asked
    for number in (2, 0, 1, 1):
        assert await forger.chat(f"own {number}", "l", str(number)) == 200
    assert provider.requests == asked

    # the future, gaps, large ones, lanes that look like keys; and what is no number, or too large
    for lane, ordinal in (
        ("l", "7"),
        ("l", "5"),
        ("l", HUGE),
        ("l/0", "1"),
        ("l/1/1", "0"),
        ("auto/1", "1"),
        ("main.0", "3"),
    ):
        assert await forger.chat(f"{lane} {ordinal}", lane, ordinal) == 200
        asked += 1
    for ordinal in ("-1", "+1", "1_0", "0x1", "1.0", "1 2", HUGE + "9"):
        assert await forger.chat("no number", "l", ordinal) == 400
    assert await forger.chat("not to be named", "auto", "1") == 400
    assert provider.requests == asked

    # the past, with another question: the run goes on beside what it had
    for number in (2, 0):
        assert await forger.chat(f"another {number}", "l", str(number)) == 200
        asked += 1
    # a key that is of a wait, and a step under the key of a turn
    assert await forger.chat("in the place of a wait", "main", "0") == 200
    status, _ = await forger.ask({"name": "s"}, {"Perdure-Lane": "l", "Perdure-Ordinal": "0"}, "/perdure/v1/step")
    assert status == 200
    status, _ = await forger.ask({"result": 1}, {"Perdure-Lane": "no", "Perdure-Ordinal": "9"}, "/perdure/v1/step/end")
    assert status in (200, *REFUSED)
    asked += 1
    assert provider.requests == asked

    # the other run's name, epoch, token and turns, in headers and in the body
    token = forger.served.house.engine.endpoint(theirs, 1).token
    names = {"Perdure_Run": theirs, "Perdure_Epoch": "1", "Perdure_Token": token, "Perdure_Offset": "9"}
    for number in range(3):
        assert await forger.chat(f"theirs {number}", "l", str(number + 100), **names) == 200
        body = chat("in words", run_id=theirs, key=f"l/{number}", lane="l", ordinal=number, epoch=1)
        status, value = await forger.ask(body, {"Idempotency-Key": f"perdure-{theirs}-1-l/{number}"})
        assert status == 200 and value["choices"][0]["message"]["content"] == "answer to in words"
    assert provider.requests == asked + 6

    await forger.check(own, before)
    await forger.check(theirs, {})
    assert await forger.entries(theirs) == kept


async def test_two_questions_under_one_key_at_once(forger: Forger, provider: Provider) -> None:
    """The second hears neither the answer of the first nor takes its place, wherever the first one is."""
    own = await forger.start()
    forger.be(own)
    for number in range(5):
        found = await asyncio.gather(*(forger.chat(f"{number} {way}", "l", str(number)) for way in "abc"))
        assert 200 in found
    provider.silence, asked = asyncio.Event(), provider.requests
    first = asyncio.create_task(forger.chat("first", "l", "50"))
    await until(lambda: provider.requests > asked)
    second = asyncio.create_task(forger.chat("second", "l", "50"))
    await until(lambda: provider.requests > asked + 1)
    provider.silence.set()
    assert await asyncio.gather(first, second) == [200, 200]
    await forger.check(own, {})


@pytest.mark.parametrize("seed", range(3))
async def test_forged_ordinals_at_random(forger: Forger, provider: Provider, many_files: None, seed: int) -> None:
    """Many at once, of few lanes, ordinals and questions, so that they meet; two runs, one beside the other."""
    chance = random.Random(seed)
    theirs, own = await forger.start(), await forger.start()
    forger.be(theirs)
    for number in range(6):
        assert await forger.chat(f"q{number}", "l", str(number)) == 200
    kept = await forger.entries(theirs)
    forger.be(own)
    before: dict[int, list[Entry]] = {}

    async def forged() -> None:
        ordinal = chance.choice(["0", "1", "2", "5", "17", HUGE, "-3", "", "x"])
        if chance.random() < 0.3:
            headers = {"Perdure-Lane": chance.choice("lm"), "Perdure-Ordinal": ordinal or "0"}
            name = chance.choice(["emit", "step", "step/end", "value"])
            body = {"emit": {"name": "e", "value": 1}, "step": {"name": "s"}, "step/end": {"result": 1}}
            status, value = await forger.ask(body.get(name, {"of": "uuid"}), headers, f"/perdure/v1/{name}")
            assert status == 200 or (status < 500 and value["error"]["message"]), (name, status, value)
        else:
            await forger.chat(f"q{chance.randrange(4)}", chance.choice(["l", "m", "l/1"]), ordinal)

    async with asyncio.timeout(3 * DEADLINE_S):
        for _ in range(6):
            await asyncio.gather(*(forged() for _ in range(12)))
            await forger.check(own, before)
            before = await forger.entries(own)
    started = {(e.branch, e.seq) for found in before.values() for e in found if e.kind == "model.started"}
    assert len(started) == provider.requests - 6
    assert await forger.entries(theirs) == kept
    await forger.served.house.engine.cancel(own)
    assert (await forger.served.house.ends(own)).state is RunState.CANCELLED
