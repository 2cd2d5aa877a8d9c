"""What guests ask for: steps, messages, and calls that are wrong."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.testing.machines import Ask
from perdure.testing.programs import Steps


async def test_the_first_end_of_a_step_is_its_end(house: Any) -> None:
    def program() -> Steps:
        yield Ask("step", {"name": "s", "on_doubt": "ask"}, at=0)
        yield Ask("step/end", {"result": 1}, at=0)
        again = yield Ask("step/end", {"result": 2}, at=0)
        begun = yield Ask("step", {"name": "s", "on_doubt": "ask"}, at=0)
        yield Ask("complete", {"result": [again.value, begun.value]}, at=1)

    info = await house.ends(await house.start(program))
    assert info.result == [{"result": 1}, {"status": "done", "result": 1}]


async def test_a_value_is_drawn_once(house: Any) -> None:
    def program() -> Steps:
        values = []
        for nth, of in enumerate(("now", "random", "uuid")):
            first = yield Ask("value", {"of": of}, at=nth)
            again = yield Ask("value", {"of": of}, at=nth)
            values.append([first.value["value"], again.value["value"]])
        wrong = yield Ask("value", {"of": "dice"})
        yield Ask("complete", {"result": [values, wrong.status, wrong.value["error"]["message"]]})

    values, status, message = (await house.ends(await house.start(program))).result
    assert all(first == again for first, again in values) and len({str(first) for first, _ in values}) == 3
    assert (status, message) == (400, "no such value: 'dice'")


async def test_messages_are_those_before_the_call_was_first_asked(house: Any) -> None:
    def program() -> Steps:
        yield Ask("message", {"message": {"role": "user", "content": "a"}})
        one = yield Ask("messages", {})
        yield Ask("message", {"message": {"role": "user", "content": "b"}})
        again = yield Ask("messages", {}, at=1)
        two = yield Ask("messages", {})
        yield Ask("complete", {"result": [len(x.value["messages"]) for x in (one, again, two)]})

    assert (await house.ends(await house.start(program))).result == [1, 1, 2]


@pytest.mark.parametrize(
    ("ask", "status", "words"),
    [
        (Ask("nothing", {}), 404, "no such call"),
        (Ask("wait", {"kind": "sometimes"}), 400, "no such kind of wait"),
        (Ask("wait", {"kind": "time"}), 400, "seconds"),
        (Ask("wait", {"kind": "time", "seconds": -1}), 400, "number of seconds"),
        (Ask("wait", {"kind": "signal"}), 400, "name"),
        (Ask("step", {"name": "x", "on_doubt": "perhaps"}), 400, "on_doubt"),
        (Ask("step", {}), 400, "name"),
        (Ask("step/end", {"result": 1}), 409, "no step was begun"),
        (Ask("message", {"message": "x"}), 400, "object"),
        (Ask("emit", [1]), 400, "not a JSON object"),
    ],
)
async def test_wrong_calls_are_the_guests_error_and_the_run_goes_on(
    house: Any, ask: Ask, status: int, words: str
) -> None:
    def program() -> Steps:
        said = yield ask
        yield Ask("complete", {"result": [said.status, said.value["error"]]})

    got, error = (await house.ends(await house.start(program))).result
    assert got == status
    assert words in error["message"]
