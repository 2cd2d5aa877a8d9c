"""What all runs of an agent may spend together, on two servers that share a database."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import aiohttp

from perdure.model import Budget, JointBudget
from perdure.runs.budgets import Budgets
from perdure.testing.guestdoor import AWAKE, guest_door, waits
from perdure.testing.house import House

BUDGETS = Budgets(joint=[JointBudget(name="main", per="month", budget=Budget(calls=2))])
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


async def test_the_sum_is_that_of_both(houses: Callable[[], House]) -> None:
    both = [houses(), houses()]
    for house in both:
        house.settings = dataclasses.replace(house.settings, budgets=BUDGETS)
        await house.up()
    told = []
    for number in (0, 1, 0, 1):
        house = both[number]
        run_id = await house.start(waits, policy=AWAKE)
        await house.waits(run_id, "signal")
        async with guest_door(house, run_id) as door:
            told.append(await _chat(door.url))
    assert told == [200, 200, 402, 402]
    assert [(await house.engine.joint_budgets.all())[0].spent.calls for house in both] == [2, 2]


async def _chat(url: str) -> int:
    async with aiohttp.ClientSession() as client, client.post(url + "/v1/chat/completions", json=CHAT) as answer:
        return answer.status
