"""What is asked for and answered is checked at the border: moments, forms, ids of signals, sizes, unknown fields."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure.agent import values
from perdure.errors import Conflict, InvalidValue, TooLarge
from perdure.model import RunState
from perdure.runs import bounds
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval

FORM = [
    {"name": "amount", "type": "number", "label": "How much?"},
    {"name": "size", "type": "choice", "choices": ["S", "M"], "required": False},
    {"name": "gift", "type": "boolean", "required": False},
    {"name": "note", "required": False},
]


async def test_until_a_moment_in_every_spelling(house: Any) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=0.2)

    def program() -> Steps:
        yield Ask("wait", {"kind": "time", "until": soon.isoformat()})
        yield Ask("wait", {"kind": "time", "until": soon.timestamp() + 0.1})
        yield Ask("wait", {"kind": "time", "until": "2001-09-09T01:46:40Z"})  # long ago: at once
        yield Ask("complete", {"result": time.time() >= soon.timestamp() + 0.1})

    run_id = await house.start(program)
    assert (await house.ends(run_id)).result is True
    started = [entry.payload["wait"] for entry in await house.entries(run_id, "wait.started")]
    assert [wait["until"] for wait in started] == [soon.timestamp(), soon.timestamp() + 0.1, 1e9]
    assert all(wait["absolute"] for wait in started)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"kind": "time", "until": "tomorrow"}, "until is not a moment: 'tomorrow'"),
        ({"kind": "time", "until": "2026-05-01T09:00:00"}, "until has no time zone"),
        ({"kind": "time", "until": 1767225600000}, "until is not a number of seconds since 1970"),
        ({"kind": "time", "until": 1.0, "seconds": 1.0}, 'needs "seconds", or "until"'),
        ({"kind": "time"}, 'needs "seconds", or "until"'),
        ({"kind": "nap"}, "no such kind of wait: 'nap'"),
        ({"kind": "signal", "name": "a", "tiemout_s": 3}, "unknown field 'tiemout_s'"),
        ({"kind": "signal", "name": "a", "form": FORM}, "a wait for a signal has no form"),
        ({"kind": "approval", "prompt": "?", "form": [{"name": ""}]}, "not the name of a field: ''"),
        (
            {"kind": "approval", "prompt": "?", "form": [{"name": "a"}, {"name": "a"}]},
            "two fields of the form are",
        ),
        (
            {"kind": "approval", "prompt": "?", "form": [{"name": "a", "type": "choice"}]},
            "a choice with 0 choices",
        ),
        ({"kind": "approval", "prompt": "?", "form": [{"name": "a", "type": "date"}]}, "Invalid enum value 'date'"),
        ({"kind": "approval", "prompt": "?", "form": [{"name": "a", "min": 3}]}, "unknown field `min`"),
        ({"kind": "approval", "prompt": "?", "show": "x" * (1 << 21)}, "the limit is 1048576"),
    ],
)
async def test_a_wait_that_is_none_is_refused_with_its_field(house: Any, body: dict[str, Any], words: str) -> None:
    def program() -> Steps:
        said = yield Ask("wait", body)
        yield Ask("complete", {"result": [said.status, said.value["error"]["message"]]})

    status, message = (await house.ends(await house.start(program))).result
    assert status in (400, 413) and words in message


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": ["a"]}, {"name": None, "value": 1}])
async def test_what_is_emitted_has_a_name(house: Any, body: dict[str, Any]) -> None:
    def program() -> Steps:
        said = yield Ask("emit", body)
        yield Ask("complete", {"result": [said.status, said.value["error"]["message"]]})

    run_id = await house.start(program)
    status, message = (await house.ends(run_id)).result
    assert status == 400 and '"name" is text that is not empty' in message
    assert await house.entries(run_id, "emit") == []


async def test_a_form_is_checked_and_its_values_reach_the_program(house: Any) -> None:
    def program() -> Steps:
        verdict = yield approval(form=FORM)
        yield Ask("complete", {"result": verdict.value["values"]})

    run_id = await house.start(program)
    info = await house.reaches(run_id, RunState.SUSPENDED)
    assert [field["name"] for field in info.waits[0]["form"]] == ["amount", "size", "gift", "note"]
    for values_given, words in (
        ({}, r"'amount' \(How much\?\) is not filled in"),
        ({"amount": "3"}, "'amount' is to be a number, and is \"3\""),
        ({"amount": True}, "'amount' is to be a number"),
        ({"amount": 1, "size": "L"}, "'size' is to be one of S, M"),
        ({"amount": 1, "gift": "yes"}, "'gift' is to be true or false"),
        ({"amount": 1, "note": 5}, "'note' is to be text"),
        ({"amount": 1, "colour": "red"}, "no field 'colour'"),
    ):
        with pytest.raises(InvalidValue, match=words):
            await house.engine.approve(run_id, None, approved=True, values=values_given)
    assert (await house.engine.info(run_id)).state is RunState.SUSPENDED  # nothing was taken
    await house.engine.approve(run_id, None, approved=True, values={"amount": 1.5, "size": "M"})
    assert (await house.ends(run_id)).result == {"amount": 1.5, "size": "M", "gift": None, "note": None}


async def test_a_refusal_may_leave_the_form_as_it_is(house: Any) -> None:
    def program() -> Steps:
        verdict = yield approval(form=FORM)
        yield Ask("complete", {"result": [verdict.value["approved"], verdict.value["values"]["amount"]]})

    run_id = await house.start(program)
    await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    await house.engine.approve(run_id, None, approved=False)
    assert (await house.ends(run_id)).result == [False, None]


async def test_an_expired_approval_is_refused_though_its_timer_is_late(house: Any) -> None:
    def program() -> Steps:
        verdict = yield approval(timeout_s=0.05)
        yield Ask("complete", {"result": verdict.value["timed_out"]})

    house.engine._timers.add = lambda *_, **__: None  # no clock will say so
    run_id = await house.start(program)
    info = await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    assert not await house.engine._runs[run_id].until(lambda: False, info.waits[0]["until"] - time.time() + 0.01)
    with pytest.raises(Conflict, match=r"expired: it timed out at \d{4}-\d\d-\d\d") as refused:
        await house.engine.approve(run_id, None, approved=True)
    assert "went on without it" in refused.value.hint
    assert (await house.ends(run_id)).result is True


async def test_a_signal_with_an_id_is_taken_once(house: Any) -> None:
    def program() -> Steps:
        one = yield Ask("wait", {"kind": "signal", "name": "paid"})
        two = yield Ask("wait", {"kind": "signal", "name": "paid"})
        yield Ask("complete", {"result": [one.value["value"], two.value["value"]]})

    run_id = await house.start(program)
    await asyncio.gather(*(house.engine.signal(run_id, "paid", 1, "order-7") for _ in range(5)))
    await house.reaches(run_id, RunState.WAITING, RunState.SUSPENDED)
    await house.down()  # it is known after a restart, too
    await house.up()
    await house.engine.signal(run_id, "paid", 1, "order-7")
    assert len(await house.entries(run_id, "signal")) == 1
    await house.engine.signal(run_id, "paid", 2, "order-8")
    assert (await house.ends(run_id)).result == [1, 2]
    with pytest.raises(Conflict, match="has ended") as refused:
        await house.engine.signal(run_id, "paid", 3, "order-9")
    assert refused.value.hint


async def test_what_a_signal_cannot_be(house: Any) -> None:
    def program() -> Steps:
        yield approval()

    run_id = await house.start(program)
    with pytest.raises(InvalidValue, match="not the id of a signal: 'main/0'"):
        await house.engine.signal(run_id, "a", 1, "main/0")
    with pytest.raises(TooLarge, match=r"the value of signal 'a' has 1048579 bytes of JSON, the limit is 1048576"):
        await house.engine.signal(run_id, "a", "x" * ((1 << 20) + 1))
    with pytest.raises(TooLarge, match="the input has"):
        await house.start(program, input="x" * (1 << 21))
    await house.engine.signal(run_id, "a", "x" * ((1 << 20) - 2))  # as large as it may be
    await house.engine.cancel(run_id)


def test_guest_and_host_have_the_same_limit() -> None:
    assert values.VALUE_MAX_BYTES == bounds.VALUE_MAX_BYTES


def test_a_call_that_is_nested_without_end_is_no_json() -> None:
    with pytest.raises(InvalidValue, match="nested too deeply"):
        bounds.read_body(b"[" * 5000 + b"]" * 5000, "the body")
    for wrong in (b'{"a": NaN}', b'{"a": "\\ud800"}', b'{"a": 1e999}', b"\xff", b"{"):
        with pytest.raises(InvalidValue, match="the body is not JSON"):
            bounds.read_body(wrong, "the body")
