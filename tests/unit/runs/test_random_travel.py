"""Runs that are answered, killed, forked and rewound at random: each ends as the way of its own log says."""

from __future__ import annotations

import random
from typing import Any

import pytest

from perdure.errors import Conflict
from perdure.model import RunState
from perdure.testing.machines import Ask, Effect
from perdure.testing.programs import Steps, chat

DECISIONS = 4


def decisions() -> Steps:
    said = []
    for number in range(DECISIONS):
        turn = yield Ask(chat("").name, chat(f"{number} after {said}").body, at=4 * number)
        verdict = yield Ask("wait", {"kind": "approval", "prompt": f"{number}?"}, at=4 * number + 1)
        asked = yield Ask("step", {"name": f"do {number}", "on_doubt": "retry"}, at=4 * number + 2)
        if asked.value["status"] == "run":
            yield Effect(lambda: None)
            yield Ask("step/end", {"result": number}, at=4 * number + 2)
        assert turn.value["choices"][0]["message"]["content"] == f"answer to {number} after {said}"
        said.append(verdict.value["comment"])
    yield Ask("complete", {"result": said}, at=4 * DECISIONS)


async def waits(house: Any, run_id: str) -> dict[str, Any] | None:
    """What the run asks next; None: it has ended."""
    run = house.engine._runs.get(run_id)
    if run is not None:
        assert await run.until(lambda: run.ended or bool(run.record.waits.open), 20), run.record
    info = await house.engine.info(run_id)
    return info.waits[0] if info.waits and info.state not in ("completed", "failed") else None


@pytest.mark.parametrize("seed", range(8))
async def test_every_run_ends_as_its_log_says(house: Any, provider: Any, seed: int) -> None:
    dice = random.Random(seed)
    runs = [await house.start(decisions)]
    words = iter(range(1000))
    for _ in range(25):
        run_id = dice.choice(runs)
        wait = await waits(house, run_id)
        act = dice.choice(["answer", "answer", "answer", "kill", "fork", "rewind", "sleep"])
        info = await house.engine.info(run_id)
        if act == "answer" and wait is not None:
            try:
                await house.engine.approve(run_id, wait["id"], approved=True, comment=f"word {next(words)}")
            except Conflict:
                pass  # the run went on meanwhile
        elif act == "kill" and wait is not None and house.sandbox(run_id) in house.machines.sandboxes:
            await house.kill_machine(run_id)
        elif act in ("fork", "rewind"):
            last = info.seq - 1 if wait is None else info.seq
            at = dice.randint(2, max(2, last))
            if any(e.seq == at and e.kind.startswith("run.completed") for e in await house.entries(run_id)):
                at -= 1
            if act == "rewind":
                await house.engine.rewind(run_id, at)
            elif len(runs) < 5:
                runs.append((await house.engine.fork(run_id, at=at))[0].id)
        elif act == "sleep" and wait is not None:
            run = house.engine._runs[run_id]
            await run.until(lambda run=run: run.state is RunState.SUSPENDED, 1)
    for run_id in runs:
        while (wait := await waits(house, run_id)) is not None:
            try:
                await house.engine.approve(run_id, wait["id"], approved=True, comment=f"word {next(words)}")
            except Conflict:
                pass
        info = await house.ends(run_id)
        entries = await house.entries(run_id)
        done = [e.payload for e in entries if e.kind == "wait.completed"]
        assert info.result == [one["value"]["comment"] for one in done], info
        assert [e.seq for e in entries] == list(range(1, len(entries) + 1))
        keys = [e.key for e in entries if e.kind == "model.committed"]
        assert len(keys) == len(set(keys)) == DECISIONS  # no turn of its way was paid twice
        await house.context.verify(run_id)
