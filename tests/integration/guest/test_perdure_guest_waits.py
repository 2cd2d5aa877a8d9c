"""``perdure-guest wait``: for moments, forms, children and sets, as a shell types them; the test is the host."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from perdure.execution.guest.session import GuestCall

from .conftest import DEADLINE_S, Shell

FORM = [
    {"name": "amount", "required": True, "type": "number"},
    {"name": "note", "required": False, "type": "text", "label": "Why?"},
    {
        "name": "colour",
        "required": True,
        "label": "Which: one?",
        "type": "choice",
        "choices": ["red", "dark green", ""],
    },
    {"name": "sure", "required": False, "type": "boolean"},
]
FIELDS = ("amount=number", "note?:Why?", "colour=red|dark green|:Which: one?", "sure?=boolean")


def of(kind: str, **answer: Any) -> Any:
    return lambda call, body: {"kind": kind, "timed_out": False, **answer}


@pytest.mark.parametrize(
    ("moment", "asked"),
    [
        ("2026-05-01T09:00:00+02:00", "2026-05-01T09:00:00+02:00"),
        ("1777000000", 1777000000),
        ("1777000000.5", 1777000000.5),
        ("1.2.3", "1.2.3"),  # the host says what is wrong with it
        ("-1", "-1"),
        ("", ""),
    ],
)
async def test_a_moment(shell: Shell, moment: str, asked: Any) -> None:
    shell.says = of("time")
    assert await shell("wait", "until", moment, "--lane", "l") == (b"", "")
    assert shell.asked == [("l", 0, "wait", {"kind": "time", "until": asked})]


async def test_a_form_and_its_values(shell: Shell) -> None:
    values = {"amount": 3, "note": None, "colour": "red", "sure": True}
    shell.says = of("approval", approved=True, comment="fine", values=values, by="ann")
    said, _ = await shell("wait", "approval", "Pay?", *[word for field in FIELDS for word in ("--field", field)])
    assert json.loads(said) == values
    assert shell.asked[0][3] == {"kind": "approval", "prompt": "Pay?", "form": FORM}
    said, _ = await shell("wait", "approval", "Pay?", "--form", "-", "--json", given=json.dumps(FORM).encode())
    assert json.loads(said)["by"] == "ann"
    assert shell.asked[1][3] == shell.asked[0][3]
    shell.says = of("approval", approved=False, comment="no", values={"amount": None})
    assert (await shell("wait", "approval", "Pay?", "--field", "amount=number", status=1))[0] == b'{"amount": null}\n'
    shell.says = lambda call, body: {"kind": "approval", "approved": False, "values": {}, "timed_out": True}
    assert await shell("wait", "approval", "Pay?", "--field", "a", "--timeout", "1h", status=2) == (b"", "")


async def test_the_hosts_word_on_a_form(shell: Shell) -> None:
    shell.status = 400
    shell.says = lambda call, body: {"error": {"code": "invalid-value", "message": "two fields", "hint": "One."}}
    _, told = await shell("wait", "approval", "Pay?", "--field", "a", "--field", "a", status=125)
    assert told == "perdure-guest: two fields\n  One.\n"


@pytest.mark.parametrize(
    ("words", "asked", "answer", "printed"),
    [
        (["--", "make", "report"], {"command": ["make", "report"]}, {"exit_status": 0, "output": "a\nb\n"}, b"a\nb\n"),
        (["--", "true"], {"command": ["true"]}, {"exit_status": 0, "output": ""}, b""),
        (
            ["--image", "other", "--memory=1.5g", "--vcpus", "2", "--timeout", "1h", "--", "sh", "--json"],
            {"command": ["sh", "--json"], "image": "other", "memory_mib": 1536, "vcpus": 2, "timeout_s": 3600.0},
            {"exit_status": 0, "output": "no line's end"},
            b"no line's end\n",
        ),
        (["note", "--input", '{"topic": "owls"}'], {"function": "note", "input": {"topic": "owls"}}, "hoo", b"hoo\n"),
        (["note", "--input=-"], {"function": "note", "input": [1]}, {"a": 1}, b'{"a": 1}\n'),
        (["note"], {"function": "note"}, None, b"null\n"),
    ],
)
async def test_a_child_and_what_it_returned(
    shell: Shell, words: list[str], asked: dict[str, Any], answer: Any, printed: bytes
) -> None:
    shell.says = of("child", run_id="r1", result=answer)
    assert (await shell("wait", "child", *words, given=b"[1]"))[0] == printed
    assert [(call, body) for _, _, call, body in shell.asked] == [("wait", {"kind": "child", **asked})]
    assert shell.asked[0][0] == "sh:child:" + (asked.get("function") or "%20".join(asked["command"]))


async def test_a_child_that_fails_and_one_that_takes_too_long(shell: Shell) -> None:
    details = {"exit_status": 3, "output": "half\n"}
    error = {"code": "program-failed", "message": "the program ended with exit status 3", "details": details}
    shell.says = of("child", run_id="r1", error=error)
    said, told = await shell("wait", "child", "--", "sh", "-c", "exit 3", status=1)
    assert (said, told) == (b"half\n", "perdure-guest: child run r1: the program ended with exit status 3\n")
    said, told = await shell("wait", "child", "--json", "--", "sh", status=1)
    assert json.loads(said)["error"] == error
    shell.says = of("child", run_id="r1", error={"code": "agent-failed", "message": "no owls"})
    assert await shell("wait", "child", "note", status=1) == (b"", "perdure-guest: child run r1: no owls\n")
    shell.says = of("child", timed_out=True)
    assert await shell("wait", "child", "note", "--timeout", "1s", status=2) == (b"", "")


async def test_which_of_a_set_came_first(shell: Shell) -> None:
    words = ("signal", "stop", "+", "approval", "Go on?", "--show", "-", "+", "time", "3d", "--timeout", "4d")
    came: list[Any] = [None, {"kind": "approval", "approved": True, "comment": "fine", "timed_out": False}, None]
    shell.says = of("any", order=[1], waits=came)
    assert (await shell("wait", "any", *words, given=b"draft"))[0] == b"1 fine\n"
    lane, _, call, body = shell.asked[0]
    assert (lane[:36], call) == ("sh:any:signal%20stop%20approval%20Go", "wait/set")
    assert body == {
        "mode": "any",
        "waits": [
            {"kind": "signal", "name": "stop"},
            {"kind": "approval", "prompt": "Go on?", "show": "draft"},
            {"kind": "time", "seconds": 259200.0},
        ],
        "timeout_s": 345600.0,
    }
    came[1]["approved"] = False
    assert (await shell("wait", "any", *words, status=1))[0] == b"1 fine\n"
    said, _ = await shell("wait", "any", *words, "--json", status=1)
    assert json.loads(said)["order"] == [1]
    shell.says = of("any", order=[2, 0], waits=[{"kind": "signal", "value": "x"}, None, {"kind": "time"}])
    assert (await shell("wait", "any", *words))[0] == b"2\n"
    shell.says = of("any", order=[], waits=[None] * 3, timed_out=True)
    assert await shell("wait", "any", *words, status=2) == (b"", "")


async def test_the_values_of_all(shell: Shell) -> None:
    words = ("--json", "signal", "a", "+", "child", "--", "echo", "1", "+", "approval", "Go?", "+", "until", "0")
    verdict = {"kind": "approval", "approved": True, "comment": "", "timed_out": False}
    kid: dict[str, Any] = {"kind": "child", "run_id": "r1", "result": {"exit_status": 0, "output": "1\n"}}
    answers = [{"kind": "signal", "value": [1, {"b": "\u00e9"}]}, kid, verdict, {"kind": "time"}]
    shell.says = of("all", order=[3, 2, 1, 0], waits=answers)
    assert json.loads((await shell("wait", "all", *words))[0])["order"] == [3, 2, 1, 0]
    values = [[1, {"b": "\u00e9"}], {"exit_status": 0, "output": "1\n"}, verdict, None]
    assert json.loads((await shell("wait", "all", *words[1:]))[0]) == values
    assert shell.asked[0][3]["waits"][1] == {"kind": "child", "command": ["echo", "1"]}
    answers[1] = {"kind": "child", "run_id": "r1", "error": {"message": "no owls"}}
    said, told = await shell("wait", "all", *words[1:], status=1)
    assert json.loads(said)[1] is None and told == "perdure-guest: child run r1: no owls\n"


async def test_a_set_of_many(shell: Shell) -> None:
    names = [f"go {n}" for n in range(1000)]
    shell.says = of("any", order=[999], waits=[None] * 999 + [{"kind": "signal", "value": "last"}])
    words = [word for name in names for word in ("signal", name, "+")][:-1]
    assert (await shell("wait", "any", *words))[0] == b"999 last\n"
    assert [one["name"] for one in shell.asked[0][3]["waits"]] == names
    assert shell.asked[0][0].startswith("sh:any:signal%20go%200") and len(shell.asked[0][0]) < 128
    assert "at most 1000 waits" in (await shell("wait", "any", *words, "+", "time", "1", status=125))[1]


@pytest.mark.parametrize("answer", [{}, {"order": []}, {"order": [7]}, {"order": "x", "waits": 3}, {"order": [-1]}])
async def test_an_answer_that_is_none(shell: Shell, answer: Any) -> None:
    shell.says = lambda call, body: answer
    _, told = await shell("wait", "any", "signal", "a", "+", "signal", "b", status=125)
    assert "none of the waits came" in told


async def test_a_run_that_is_to_end(shell: Shell) -> None:
    shell.status = 409
    shell.says = lambda call, body: {
        "error": {"code": "cancelled", "message": "cancelled: enough", "hint": "Clean up."}
    }
    for words in (["wait", "signal", "go"], ["wait", "any", "time", "1"], ["step", "a", "--", "true"], ["now"]):
        assert await shell(*words, status=124) == (b"", "perdure-guest: cancelled: enough\n  Clean up.\n")


@pytest.mark.parametrize(
    ("of", "value", "printed"), [("now", 1.5, b"1.5\n"), ("random", 0.25, b"0.25\n"), ("uuid", "a-b", b"a-b\n")]
)
async def test_drawn_values(shell: Shell, of: str, value: Any, printed: bytes) -> None:
    shell.says = lambda call, body: {"value": value}
    assert (await shell(of))[0] == printed
    assert shell.asked == [(f"sh:{of}:", 0, "value", {"of": of})]


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ([], b'{"a": [1, {"0": "x\\ny"}], "b": null}\n'),
        (["a"], b'[1, {"0": "x\\ny"}]\n'),
        (["a", "0"], b"1\n"),
        (["a", "1", "0"], b"x\ny\n"),
        (["b"], b"null\n"),
    ],
)
async def test_what_a_json_has(shell: Shell, words: list[str], printed: bytes) -> None:
    given = b'{"a": [1, {"0": "x\\ny"}], "b": null}'
    assert (await shell("get", *words, given=given))[0] == printed
    for nowhere in (["c"], ["a", "2"], ["a", "0", "0"], ["b", "x"], ["a", ""], ["a", "99999999999999999999999"]):
        assert await shell("get", *nowhere, given=given, status=1) == (b"", "")
    assert shell.asked == []


async def test_an_answer_survives_a_cut_in_the_middle_of_a_set(shell: Shell) -> None:
    reached = asyncio.Event()

    async def hangs(call: GuestCall, body: Any) -> Any:
        reached.set()
        await asyncio.Event().wait()

    shell.says = hangs
    waiting = asyncio.create_task(shell("wait", "any", "signal", "a", "+", "time", "9d"))
    await asyncio.wait_for(reached.wait(), DEADLINE_S)
    shell.says = of("any", order=[0], waits=[{"kind": "signal", "value": "came"}, None])
    await shell.guest.cut()
    assert (await waiting)[0] == b"0 came\n"
    assert [(lane, ordinal) for lane, ordinal, _, _ in shell.asked] == [(shell.asked[0][0], 0)] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["until"], "wait until MOMENT"),
        (["until", "a", "b"], "wait until MOMENT"),
        (["child"], "wait child AGENT"),
        (["child", "--"], "wait child AGENT"),
        (["child", "note", "--", "sh"], "wait child AGENT"),
        (["child", "note", "--input", "{"], "this is not JSON: {"),
        (["child", "--memory", "lots", "--", "sh"], "lots is no size of a memory"),
        (["child", "--memory", "0m", "--", "sh"], "0m is no size of a memory"),
        (["child", "--vcpus", "1.5", "--", "sh"], "1.5 is no number from 1 on"),
        (["child", "--vcpus", "0", "--", "sh"], "0 is no number from 1 on"),
        (["signal", "go", "--show", "x"], "--show is not for signal"),
        (["signal", "go", "--", "x"], "for wait child, not for wait signal"),
        (["signal", "go", "--json=1"], "there is no option --json=1"),
        (["time", "1", "--timeout", "2"], "--timeout is not for time"),
        (["time", "0x10"], "0x10 is no time"),
        (["time", "1e3"], "1e3 is no time"),
        (["time", "inf"], "inf is no time"),
        (["time", "9" * 400], "is longer than 300 years"),
        (["time", "99999w"], "is longer than 300 years"),
        (["approval", "a", "--field", "a=whole"], "its type is text, number or boolean"),
        (["approval", "a", "--form", "none.json"], "none.json: No such file"),
        (["approval", "a", "--form", "-"], "--form - is not JSON"),
        (["approval", "a", "--form", "-", "--field", "b"], "by --form, or by --field"),
        (["approval", "a", *["--field=b"] * 51], "at most 50 fields"),
        (["any"], "not for nothing"),
        (["any", "+"], "not for nothing"),
        (["all", "signal", "a", "+"], "not for nothing"),
        (["any", "any", "signal", "a"], "not for any"),
        (["any", "signal", "a", "--keep"], "--keep is not for signal"),
        (["any", "signal", "a", "--timeout", "1", "+", "signal", "b", "--timeout", "2"], "a set has one --timeout"),
    ],
)
async def test_what_is_wrong_is_said(shell: Shell, words: list[str], said: str) -> None:
    out, told = await shell("wait", *words, status=125, given=b"no json")
    assert said in told and out == b""
    assert shell.asked == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_wait_that_is_ended_by_a_signal_is_withdrawn(shell: Shell, number: signal.Signals) -> None:
    reached = asyncio.Event()

    async def hangs(call: GuestCall, body: Any) -> Any:
        reached.set()
        return {} if call.path.endswith("/withdraw") else await asyncio.Event().wait()

    shell.says = hangs
    process = await shell.start("wait", "any", "signal", "a", "+", "time", "9d")
    await asyncio.wait_for(reached.wait(), DEADLINE_S)
    os.kill(process.pid, number)
    os.kill(process.pid, number)  # as timeout(1) does
    assert await asyncio.wait_for(process.communicate(), DEADLINE_S) == (b"", b"")
    assert process.returncode == -number
    lane = shell.asked[0][0]
    assert [asked[:3] for asked in shell.asked] == [(lane, 0, "wait/set"), (lane, 0, "wait/withdraw")]


async def test_a_later_signal_ends_what_cannot_be_withdrawn(shell: Shell) -> None:
    asked: asyncio.Queue[str] = asyncio.Queue()

    async def hangs(call: GuestCall, body: Any) -> Any:
        asked.put_nowait(call.path)
        await asyncio.Event().wait()

    shell.says = hangs
    process = await shell.start("wait", "signal", "a")
    for path in ("/perdure/v1/wait", "/perdure/v1/wait/withdraw"):
        assert await asyncio.wait_for(asked.get(), DEADLINE_S) == path
        process.terminate()
    ended = asyncio.create_task(process.wait())
    async with asyncio.timeout(DEADLINE_S):
        while not (await asyncio.wait([ended], timeout=0.1))[0]:
            process.terminate()
    assert ended.result() == -signal.SIGTERM


async def test_a_wait_that_was_withdrawn_in_an_earlier_life_waits_for_its_signal(shell: Shell) -> None:
    answered = asyncio.Event()

    def says(call: GuestCall, body: Any) -> Any:
        answered.set()
        return {"kind": "signal", "withdrawn": True}

    shell.says = says
    process = await shell.start("wait", "signal", "a")
    await asyncio.wait_for(answered.wait(), DEADLINE_S)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 0.3)
    process.terminate()
    assert await asyncio.wait_for(process.communicate(), DEADLINE_S) == (b"", b"")
    assert process.returncode == -signal.SIGTERM


async def test_a_signal_that_is_ignored_stays_so(shell: Shell) -> None:
    reached, go = asyncio.Event(), asyncio.Event()

    async def later(call: GuestCall, body: Any) -> Any:
        reached.set()
        await go.wait()
        return {"kind": "signal", "value": "came"}

    shell.says = later
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which its child inherits
    try:
        process = await shell.start("wait", "signal", "a")
    finally:
        signal.signal(signal.SIGTERM, before)
    await asyncio.wait_for(reached.wait(), DEADLINE_S)
    process.terminate()
    go.set()
    assert (await asyncio.wait_for(process.communicate(), DEADLINE_S))[0] == b"came\n"
