"""Agents as a guest runs them: a process of its own, and a door."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from .conftest import END, Door, Guest, event

pytestmark = pytest.mark.timeout(60)

HEAD = "from perdure import Context, agent\n@agent()\n"


def test_every_call_has_its_key_and_the_run_completes(guest: Guest, door: Door) -> None:
    door.input = {"topic": "owls"}
    door.waits = {"Go on?": {"approved": True, "comment": "yes", "by": "ann", "at": 12.5}, "go": {"value": [1]}}
    result = guest.result(
        HEAD
        + """
def f(ctx: Context, topic: str):
    assert isinstance(ctx.run_id, str)
    ctx.emit("note", {"topic": topic})
    ctx.sleep("1h30m")
    verdict = ctx.approval("Go on?", show={"a": 1}, timeout="3d")
    value = ctx.wait_for("go", timeout=5)
    said = ctx.messages({"role": "user", "content": "hi"})
    return [topic, verdict.approved, verdict.comment, verdict.by, verdict.at, value, said]
"""
    )
    assert result == ["owls", True, "yes", "ann", 12.5, [1], [{"role": "user", "content": "hi"}]]
    assert [(key, path) for key, path, _ in door.asked] == [
        ("main/0", "begin"),
        ("main/1", "emit"),
        ("main/2", "wait"),
        ("main/3", "wait"),
        ("main/4", "wait"),
        ("main/5", "message"),
        ("main/6", "messages"),
        ("main/7", "complete"),
    ]
    assert door.bodies("wait") == [
        {"kind": "time", "seconds": 5400.0},
        {"kind": "approval", "prompt": "Go on?", "show": {"a": 1}, "timeout_s": 259200.0},
        {"kind": "signal", "name": "go", "timeout_s": 5.0},
    ]


def test_a_moment_and_a_form(guest: Guest, door: Door) -> None:
    door.waits = {"Pay?": {"approved": True, "values": {"amount": 3}}}
    result = guest.result(
        "from datetime import datetime, timezone\nfrom perdure import Field\n"
        + HEAD
        + """
def f(ctx):
    ctx.sleep_until("2026-05-01T09:00:00Z")
    ctx.sleep_until(datetime(2026, 5, 1, tzinfo=timezone.utc))
    fields = [Field("amount", "number", label="How much?"), Field("size", choices=("S", "M"), required=False)]
    return ctx.approval("Pay?", form=fields).values
"""
    )
    assert result == {"amount": 3}
    one, two, asked = door.bodies("wait")
    assert (one, two) == ({"kind": "time", "until": "2026-05-01T09:00:00Z"}, {"kind": "time", "until": 1777593600.0})
    assert asked["form"] == [
        {"name": "amount", "type": "number", "label": "How much?", "required": True, "choices": []},
        {"name": "size", "type": "choice", "label": "", "required": False, "choices": ["S", "M"]},
    ]


SETS = """
def f(ctx):
    later = ctx.later
    both = AWAIT ctx.all(later.wait_for("go"), later.approval("Sure?", show=1), timeout="1m")
    first = AWAIT ctx.any(later.sleep("1h"), later.wait_for("stop"), later.sleep_until(5))
    return [both[0], both[1].by, first, AWAIT ctx.all()]
"""


@pytest.mark.parametrize("is_async", [False, True])
def test_many_waits_at_once(guest: Guest, door: Door, is_async: bool) -> None:
    door.waits = {
        "all": {"order": [1, 0], "waits": [{"value": 1}, {"by": "ann"}]},
        "any": {"order": [1], "waits": [None, {"value": 2}, None]},
    }
    source = SETS.replace("AWAIT ", "await " if is_async else "")
    source = source.replace("def f", "async def f") if is_async else source
    assert guest.result(HEAD + source) == [1, "ann", [1, 2], []]
    one, two = door.bodies("wait/set")
    asked = [{"kind": "signal", "name": "go"}, {"kind": "approval", "prompt": "Sure?", "show": 1}]
    assert one == {"mode": "all", "waits": asked, "timeout_s": 60.0}
    times = [{"kind": "time", "seconds": 3600.0}, {"kind": "time", "until": 5}]
    assert two == {"mode": "any", "waits": [times[0], {"kind": "signal", "name": "stop"}, times[1]]}


@pytest.mark.parametrize(("mode", "words"), [("all", "only 1 of 2 came in time"), ("any", "none of 2 came in time")])
def test_waits_that_did_not_come_in_time(guest: Guest, door: Door, mode: str, words: str) -> None:
    door.waits = {mode: {"timed_out": True, "order": [1] if mode == "all" else [], "waits": [None, None]}}
    error = guest.error(HEAD + f"def f(ctx): ctx.{mode}(ctx.later.wait_for('a'), ctx.later.sleep(1), timeout=0)\n")
    assert error["type"] == "TimeoutError" and error["message"] == words


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("ctx.any()", "ctx.any of no waits would never be over"),
        ("ctx.all(ctx.emit)", "is not a wait"),
        ("ctx.any(ctx.later.sleep(1), timeout='soon')", "ctx.any: timeout"),
    ],
)
def test_sets_that_are_none(guest: Guest, call: str, words: str) -> None:
    error = guest.error(HEAD + f"def f(ctx): {call}\n")
    assert error["code"] == "invalid-value" and words in error["message"]


@pytest.mark.parametrize("wrong", ["None", "True", "float('nan')", "__import__('datetime').datetime(2026, 5, 1)"])
def test_moments_that_are_none(guest: Guest, wrong: str) -> None:
    error = guest.error(HEAD + f"def f(ctx): ctx.sleep_until({wrong})\n")
    assert error["code"] == "invalid-value" and "ctx.sleep_until" in error["message"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("b'x'", "a bytes is in it"),
        ("[x := [], x.append(x)][0]", "Circular reference detected"),
        ("'x' * (1 << 20)", "has 1048578 bytes of JSON, the limit is 1048576"),
    ],
)
def test_values_that_cannot_be_told(guest: Guest, value: str, words: str) -> None:
    error = guest.error(HEAD + f"def f(ctx): ctx.emit('a', {value})\n")
    assert "ctx.emit('a')" in error["message"] and words in error["message"]


def test_a_broken_connection_repeats_the_call_under_its_key(guest: Guest, door: Door) -> None:
    door.hang_ups = 3
    assert guest.result(HEAD + "def f(ctx): ctx.emit('a'); return 1\n") == 1
    assert [key for key, _, _ in door.asked] == ["main/0"] * 4 + ["main/1", "main/2"]


def test_a_step_runs_once_and_is_answered_from_the_log(guest: Guest, door: Door) -> None:
    source = HEAD + (
        "def f(ctx): return ctx.step('work', work, 5)\n"
        "def work(a, *, idempotency_key):\n"
        "    print('working')\n    return {'a': a, 'key': idempotency_key, 't': (1, 2)}\n"
    )
    first = guest.run(source)
    again = guest.run(source)
    assert (first.stdout, again.stdout) == ("working\n", "")
    one, two = (body["result"] for body in door.bodies("complete"))
    assert one == two == {"a": 5, "key": "idem-main/1", "t": [1, 2]}


def test_a_failed_step_raises_the_same_now_and_from_the_log(guest: Guest, door: Door) -> None:
    source = HEAD + (
        "def f(ctx):\n    try:\n        ctx.step('s', int, 'x')\n    except Exception as e:\n"
        "        return [type(e).__name__, e.message]\n"
    )
    guest.run(source)
    guest.run(source)
    one, two = (body["result"] for body in door.bodies("complete"))
    assert one == two
    assert one[0] == "StepFailed" and one[1].startswith("step 's' failed: ValueError: invalid literal")


def test_a_step_that_asks_the_host_fails_at_once(guest: Guest, door: Door) -> None:
    told, after = guest.result(
        HEAD + "def f(ctx):\n    try:\n        ctx.step('s', ctx.sleep, 1)\n    except Exception as e:\n"
        "        return [e.message, ctx.step('t', int, 3)]\n"
    )
    assert "ctx is used in step 's'" in told and after == 3
    assert not door.bodies("wait")


def test_a_whole_turn(guest: Guest, door: Door) -> None:
    message = {"role": "assistant", "content": "Owls.", "extra": 1}
    usage = {"prompt_tokens": 4, "completion_tokens": 1}
    answer = {"model": "m", "choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    door.streams = [[json.dumps(answer).encode()[:20], json.dumps(answer).encode()[20:]]]
    result = guest.result(
        HEAD + "def f(ctx):\n    t = ctx.chat('hi', temperature=0)\n    return [t.text, t.message, t.usage, t.model]\n"
    )
    assert result == ["Owls.", message, usage, "m"]
    assert door.bodies("/v1/chat/completions") == [{"messages": [{"role": "user", "content": "hi"}], "temperature": 0}]


STREAMED = (
    HEAD
    + """
def f(ctx):
    told = []
    turn = ctx.chat("hi", on_delta=told.append)
    stream = ctx.chat_stream("again")
    return [told, turn.text, turn.usage, list(stream), stream.turn.text]
"""
)


def test_streams_tell_every_piece(guest: Guest, door: Door) -> None:
    whole = event("a") + event("é") + END
    door.streams = [[whole[:30], whole[30:71], whole[71:]], [whole]]
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    assert guest.result(STREAMED) == [["a", "é"], "aé", usage, ["a", "é"], "aé"]


LOST = b'\n\ndata: {"error": {"message": "gone", "code": "stream-lost"}}\n\n'


@pytest.mark.parametrize("fault", [LOST, b"HANG UP"])
def test_a_lost_stream_is_asked_again_under_its_key_and_goes_on(guest: Guest, door: Door, fault: bytes) -> None:
    door.streams = [[event("One "), event("two"), fault], [event("One t"), event("wo th"), event("ree"), END]]
    source = HEAD + "def f(ctx):\n    told = []\n    return [ctx.chat('x', on_delta=told.append).text, told]\n"
    assert guest.result(source) == ["One two three", ["One ", "two", " th", "ree"]]
    assert [key for key, path, _ in door.asked if path.startswith("/v1")] == ["main/1", "main/1"]


def test_a_lost_stream_that_says_something_else_is_an_error(guest: Guest, door: Door) -> None:
    door.streams = [[event("One "), LOST], [event("Uno"), END]]
    error = guest.error(HEAD + "def f(ctx): ctx.chat('x', on_delta=print)\n")
    assert error["code"] == "provider-failed" and "something else" in error["message"]


def test_an_error_of_the_provider_is_raised(guest: Guest, door: Door) -> None:
    door.refusals = {"/v1/chat/completions": (429, {"error": {"message": "slow down", "code": "rate"}})}
    error = guest.error(HEAD + "def f(ctx): ctx.chat('x', on_delta=print)\n")
    assert error["code"] == "provider-failed" and "429" in error["message"] and "slow down" in error["message"]


ASYNC = """
import asyncio
from perdure import agent
@agent()
async def f(ctx):
    async def child(n):
        await asyncio.sleep(0.01 * (3 - n))      # the last one asks first
        await ctx.emit("child", n)
        inner = asyncio.create_task(ctx.wait_for("go"))
        return [n, await inner]
    found = await asyncio.gather(*(child(n) for n in range(3)))
    turn = await ctx.chat("hi", on_delta=lambda text: None)
    async def work(): return 7
    pieces = [p async for p in ctx.chat_stream("more")]
    verdict = await ctx.approval("ok?")
    return [found, turn.text, await ctx.step("s", work), pieces[:-1], pieces[-1].text, verdict.approved]
"""


def test_coroutines_have_a_lane_per_task_named_alike_in_every_run(guest: Guest, door: Door) -> None:
    door.waits = {"go": {"value": "v"}, "ok?": {"approved": False}}
    for _ in range(2):
        door.steps.clear()
        door.streams = [[event("a"), event("b"), END]] * 2
        guest.run(ASYNC)
    first, second = (body["result"] for body in door.bodies("complete"))
    assert first == second == [[[0, "v"], [1, "v"], [2, "v"]], "ab", 7, ["a", "b"], "ab", False]
    half = len(door.asked) // 2
    keys = [
        {(key, path, json.dumps(body)) for key, path, body in part} for part in (door.asked[:half], door.asked[half:])
    ]
    assert keys[0] == keys[1]
    emitted = {key: body["value"] for key, path, body in door.asked if path == "emit"}
    assert emitted == {"main.1/0": 0, "main.2/0": 1, "main.3/0": 2}
    assert {key for key, path, _ in door.asked if path == "wait"} == {
        "main.1.1/0",
        "main.2.1/0",
        "main.3.1/0",
        "main/3",
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module\n", "line 1 does not import: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1\ndef f(:\n", "line 2 does not import: SyntaxError"),
        ("def g(): pass\n1 / 0\n", "line 2 does not import: ZeroDivisionError"),
        ("x = 1\n", "has no function 'f'"),
    ],
)
def test_a_file_that_is_no_agent(guest: Guest, source: str, message: str) -> None:
    error = guest.error(source)
    assert error["code"] == "agent-invalid" and message in error["message"] and error["hint"]


@pytest.mark.parametrize(
    ("signature", "given", "message"),
    [
        ("ctx, topic: str", {"topic": 3}, "the input 'topic' is to be str, and is int: 3"),
        ("ctx, topic: str", {}, "f needs the input 'topic'"),
        ("ctx, a, b", 5, "the input of f is to be a JSON object"),
        ("ctx, a", {"a": 1, "b": 2}, "f takes no input 'b'"),
        ("ctx, a: bool", {"a": 1}, "is to be bool, and is int"),
        ("ctx, a: int", {"a": True}, "is to be int, and is bool"),
        ("ctx, a: list[int]", [1, "x"], "the input 'a'[1] is to be int, and is str"),
        ("ctx, a: list[int]", 3, "the input 'a' is to be list, and is int"),
        ("ctx, a: dict[str, int]", {"a": {"k": "x"}}, "the input 'a'.k is to be int, and is str"),
        ("ctx, a: 'int | None'", {"a": "x"}, "the input 'a' is to be int, and is str"),
        ("ctx, a: __import__('typing').Literal['x', 'y']", {"a": "z"}, "is to be one of 'x', 'y', and is \"z\""),
    ],
)
def test_input_that_does_not_fit(guest: Guest, door: Door, signature: str, given: object, message: str) -> None:
    door.input = given
    error = guest.error(HEAD + f"def f({signature}): return 1\n")
    assert error["code"] == "invalid-value" and message in error["message"]


@pytest.mark.parametrize(
    ("signature", "given", "result"),
    [
        ("ctx, a='d', *, b=2", None, ["d", 2]),
        ("ctx, a: float, *, b", {"a": 1, "b": None}, [1.0, None]),
        ("ctx, a: dict, b=3", {"a": {"x": 1}}, [{"x": 1}, 3]),
        ("ctx, a, b=0", {"a": [1]}, [[1], 0]),
        ("ctx, a: list[float], b: 'int | None'", {"a": [1], "b": None}, [[1.0], None]),
        ("ctx, a: 'int | str', b: 'dict[str, list[float]]'", {"a": "x", "b": {"k": [1]}}, ["x", {"k": [1.0]}]),
    ],
)
def test_input_that_fits(guest: Guest, door: Door, signature: str, given: object, result: object) -> None:
    door.input = given
    assert guest.result(HEAD + f"def f({signature}): return [a, b]\n") == result


def test_dataclasses_cross_the_border(guest: Guest, door: Door) -> None:
    door.input = {"name": "a", "size": {"x": 1}}
    source = """
from __future__ import annotations
from dataclasses import dataclass
from perdure import agent
@dataclass
class Size:
    x: int
    y: int = 2
@dataclass
class Thing:
    name: str
    size: Size
def grow(thing) -> Thing:
    return Thing(thing.name * 2, Size(thing.size.x + 1))
@agent()
def f(ctx, thing: Thing):
    grown = ctx.step("grow", grow, thing)
    assert isinstance(grown, Thing) and isinstance(grown.size, Size)
    return grown
"""
    assert guest.result(source) == {"name": "aa", "size": {"x": 2, "y": 2}}


@pytest.mark.parametrize("returned", ["object()", "{1, 2}", "float('nan')", r"'\ud800'"])
def test_a_result_that_is_not_json(guest: Guest, returned: str) -> None:
    error = guest.error(HEAD + f"def f(ctx): return {returned}\n")
    assert error["code"] == "invalid-value" and "what f returned is not a JSON value" in error["message"]


def test_another_thread_is_refused(guest: Guest) -> None:
    error = guest.error(
        HEAD
        + """
def f(ctx):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor() as pool:
        return pool.submit(ctx.emit, "a").result()
"""
    )
    assert error["code"] == "invalid-value" and "another thread" in error["message"]


@pytest.mark.parametrize("call", [r"ctx.emit('\ud800')", r"ctx.emit('a', ['\ud800'])", r"ctx.chat('\ud800')"])
def test_text_that_is_no_text(guest: Guest, call: str) -> None:
    """Half a surrogate pair, which Python has in strings and JSON has not."""
    error = guest.error(HEAD + f"def f(ctx): return {call}\n")
    assert error["code"] == "invalid-value" and "surrogates not allowed" in error["message"]


def test_an_exception_that_is_no_text_is_told_as_far_as_it_is(guest: Guest) -> None:
    assert guest.error(HEAD + r"def f(ctx): raise ValueError('a\ud800')" + "\n")["message"].endswith("a?")


def test_an_exception_is_told_with_its_traceback(guest: Guest) -> None:
    error = guest.error(HEAD + "def f(ctx):\n    raise KeyError('k')\n")
    assert error["code"] == "agent-failed" and error["type"] == "KeyError" and "line 4, in f" in error["traceback"]
    assert "perdure/agent" not in error["traceback"]  # it begins in the author's own code


@pytest.mark.parametrize("wrong", ["'3 parsecs'", "'3'", "-1", "'d'", "None", "True", "float('inf')", "''"])
def test_lengths_of_time_that_are_none(guest: Guest, wrong: str) -> None:
    error = guest.error(HEAD + f"def f(ctx): ctx.sleep({wrong})\n")
    assert error["code"] == "invalid-value" and "is not a length of time" in error["message"]


def test_a_signal_that_does_not_come_in_time(guest: Guest, door: Door) -> None:
    door.waits = {"go": {"timed_out": True}}
    assert guest.error(HEAD + "def f(ctx): ctx.wait_for('go', timeout=1)\n")["type"] == "TimeoutError"


def test_what_a_guest_imports_is_little(guest: Guest) -> None:
    """Under emulation each of these costs a tenth of a second or more."""
    heavy = {
        "typing",
        "dataclasses",
        "inspect",
        "asyncio",
        "urllib",
        "http",
        "pathlib",
        "msgspec",
        "traceback",
        "email",
    }
    code = f"import sys, perdure.agent.run; print(sorted({heavy!r} & set(sys.modules)))"
    environ = {**os.environ, "PYTHONPATH": str(guest.folder)}
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environ)
    assert done.stdout.strip() == "[]", done.stderr
