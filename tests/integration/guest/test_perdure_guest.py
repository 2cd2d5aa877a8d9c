"""``perdure-guest`` (guestd under another name) and its calls, as a shell types them; the test is the host."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from typing import Any

import pytest

from perdure.execution.guest.session import GuestCall

from .conftest import DEADLINE_S, Shell


async def test_an_approval_and_its_three_ends(shell: Shell) -> None:
    (shell.folder / "draft.md").write_text('# "Owls" \\ \tbirds\n')
    shell.says = lambda call, body: {"kind": "approval", "approved": True, "comment": "go\u00a0on", "by": "ann"}
    said, _ = await shell("wait", "approval", "Publish?", "--show", "draft.md", "--timeout=1d12h")
    assert said.decode() == "go\u00a0on\n"
    lane, ordinal, call, body = shell.asked[0]
    assert (lane, ordinal, call) == ("sh:approval:Publish%3F", 0, "wait")
    shown = '# "Owls" \\ \tbirds\n'
    assert body == {"kind": "approval", "prompt": "Publish?", "show": shown, "timeout_s": 129600.0}
    said, _ = await shell("wait", "approval", "Publish?", "--json")
    assert json.loads(said)["by"] == "ann"
    shell.says = lambda call, body: {"kind": "approval", "approved": False, "comment": "", "timed_out": False}
    assert await shell("wait", "approval", "Publish?", status=1) == (b"", "")
    shell.says = lambda call, body: {"kind": "approval", "approved": False, "comment": "", "timed_out": True}
    assert await shell("wait", "approval", "Publish?", status=2) == (b"", "")
    assert [ordinal for _, ordinal, _, _ in shell.asked] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("text", "text\n"),
        ("\u20ac \U0001f989 \\n", "\u20ac \U0001f989 \\n\n"),
        ({"a": [1, None]}, '{"a": [1, null]}\n'),
        (None, "null\n"),
    ],
)
async def test_a_signals_value(shell: Shell, value: Any, printed: str) -> None:
    shell.says = lambda call, body: {"kind": "signal", "value": value, "timed_out": False}
    said, _ = await shell("wait", "signal", "go")
    assert said.decode() == printed
    assert shell.asked[0][3] == {"kind": "signal", "name": "go"}


async def test_a_signal_that_does_not_come_and_times(shell: Shell) -> None:
    shell.says = lambda call, body: {"kind": body["kind"], "value": None, "timed_out": body["kind"] == "signal"}
    assert await shell("wait", "signal", "go", "--timeout", "90", status=2) == (b"", "")
    assert await shell("wait", "time", "1m30s") == (b"", "")
    assert [body for _, _, _, body in shell.asked] == [
        {"kind": "signal", "name": "go", "timeout_s": 90.0},
        {"kind": "time", "seconds": 90.0},
    ]


async def test_a_step_runs_once_and_is_told_from_the_log_afterwards(shell: Shell) -> None:
    recorded: dict[str, Any] = {}

    def says(call: GuestCall, body: Any) -> Any:
        if call.path.endswith("/end"):
            recorded.update(body)
            return body
        return {"status": "done", **recorded} if recorded else {"status": "run", "attempt": 1, "idempotency_key": "k1"}

    shell.says = says
    command = ("sh", "-c", 'echo "$PERDURE_IDEMPOTENCY_KEY"; echo x >> effects; echo loud >&2; exit 3')
    said, told = await shell("step", "pay the owl", "--", *command, status=3)
    assert (said, told) == (b"k1\n", "loud\n")
    assert recorded == {"result": {"exit_status": 3, "output": "k1\n"}}
    assert [(lane, ordinal) for lane, ordinal, _, _ in shell.asked] == [("sh:step:pay%20the%20owl", 0)] * 2
    assert shell.asked[0][3] == {"name": "pay the owl", "on_doubt": "ask"}
    assert await shell("step", "pay the owl", "--", *command, status=3) == (b"k1\n", "")
    assert (shell.folder / "effects").read_text() == "x\n"
    assert shell.asked[-1][1] == 1  # the next of its lane: the host decides what that is


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000])
async def test_output_that_is_no_text(shell: Shell, size: int) -> None:
    content = b"\xff" * size + b"\x00\xfe"
    (shell.folder / "content").write_bytes(content)
    ends: list[Any] = []

    def says(call: GuestCall, body: Any) -> Any:
        if call.path.endswith("/end"):
            ends.append(body)
            return body
        return {"status": "done", **ends[0]} if ends else {"status": "run", "idempotency_key": "k"}

    shell.says = says
    assert (await shell("step", "s", "--on-doubt", "retry", "--", "cat", "content"))[0] == content
    assert base64.b64decode(ends[0]["result"]["output_base64"]) == content
    assert (await shell("step", "s", "--", "cat", "content"))[0] == content
    assert len(ends) == 1


@pytest.mark.parametrize(
    ("command", "status"),
    [(("sh", "-c", "kill -9 $$"), 137), (("no-such-program",), 127), (("/",), 126)],
)
async def test_steps_that_end_badly(shell: Shell, command: tuple[str, ...], status: int) -> None:
    shell.says = lambda call, body: body if call.path.endswith("/end") else {"status": "run"}
    await shell("step", "s", "--", *command, status=status)
    assert shell.asked[-1][3]["result"]["exit_status"] == status


async def test_a_step_below_a_program_that_ignores_its_childrens_ends(shell: Shell) -> None:
    shell.says = lambda call, body: body if call.path.endswith("/end") else {"status": "run"}
    inner = ("./perdure-guest", "step", "inner", "--", "sh", "-c", "exit 3")
    await shell("step", "outer", "--", "env", "--ignore-signal=CHLD", *inner, status=3)
    assert [body["result"]["exit_status"] for _, _, call, body in shell.asked if call == "step/end"] == [3, 3]


async def test_a_step_with_too_much_output_has_an_end_all_the_same(shell: Shell) -> None:
    shell.says = lambda call, body: body if call.path.endswith("/end") else {"status": "run"}
    said, told = await shell("step", "s", "--", "head", "-c", "2000000", "/dev/zero", status=125)
    assert len(said) == 2000000
    assert "more than 1 MiB" in told
    assert shell.asked[-1][3]["error"]["type"] == "TooLarge"


async def test_a_signal_ends_the_command_and_the_step_is_recorded(shell: Shell) -> None:
    shell.says = lambda call, body: body if call.path.endswith("/end") else {"status": "run"}
    process = await shell.start("step", "s", "--", "sh", "-c", "echo begun; exec sleep 60")
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), DEADLINE_S) == b"begun\n"
    process.terminate()
    assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 143
    assert shell.asked[-1][3]["result"] == {"exit_status": 143, "output": "begun\n"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_a_signal_before_the_command_runs_is_the_end_of_the_step(shell: Shell, number: int) -> None:
    """Its beginning is recorded, and nobody else can tell that nothing came of it."""
    asked, gate = asyncio.Event(), asyncio.Event()

    async def says(call: GuestCall, body: Any) -> Any:
        if call.path.endswith("/end"):
            return body
        asked.set()
        await gate.wait()
        return {"status": "run"}

    shell.says = says
    process = await shell.start("step", "s", "--", "sh", "-c", "echo x >> effects")
    await asyncio.wait_for(asked.wait(), DEADLINE_S)
    process.send_signal(number)
    assert await asyncio.wait_for(process.wait(), DEADLINE_S) == -number
    gate.set()
    assert [call for _, _, call, _ in shell.asked] == ["step", "step/end"]
    assert shell.asked[-1][3]["result"] == {"exit_status": 128 + number, "output": ""}
    assert not (shell.folder / "effects").exists()


async def test_a_step_has_an_end_whenever_a_signal_comes(shell: Shell) -> None:
    """Just before its command is forked, and just after."""
    started, told = asyncio.Queue[asyncio.subprocess.Process](), list[Any]()

    async def says(call: GuestCall, body: Any) -> Any:
        if call.path.endswith("/end"):
            told.append(body["result"]["exit_status"])
            return body
        process = await started.get()
        asyncio.get_running_loop().call_later(delay_s, process.terminate)
        return {"status": "run"}

    shell.says = says
    for turn in range(60):
        delay_s = turn / 15_000
        process = await shell.start("step", f"s{turn}", "--", "sleep", "60")
        started.put_nowait(process)
        assert await asyncio.wait_for(process.wait(), DEADLINE_S) in (143, -signal.SIGTERM)
        assert told == [143] * (turn + 1), f"a signal after {delay_s * 1000:.2f} ms"


class Steps:
    """A host that records the ends of steps, by their keys."""

    def __init__(self) -> None:
        self.ends: dict[str, Any] = {}

    def __call__(self, call: GuestCall, body: Any) -> Any:
        key = f"{call.lane}/{call.ordinal}"
        if call.path.endswith("/wait"):
            return {"kind": "time"}
        if call.path.endswith("/end"):
            return self.ends.setdefault(key, body)
        return {"status": "done", **self.ends[key]} if key in self.ends else {"status": "run", "idempotency_key": "k"}


async def test_a_step_is_tried_again_and_only_its_last_output_counts(shell: Shell) -> None:
    shell.says = steps = Steps()
    command = ("sh", "-c", 'echo x >> tries; n=$(wc -l < tries); echo "try $n"; [ "$n" -ge 3 ]')
    words = ("step", "get", "--retries", "4", "--backoff", "2s", "--backoff-max", "3s", "--", *command)
    assert (await shell(*words))[0] == b"try 3\n"
    lane = "sh:step:get"
    first = {"name": "get", "on_doubt": "ask"}
    assert [(ordinal, call, body) for _, ordinal, call, body in shell.asked if call != "step/end"] == [
        (0, "step", first),
        (1, "wait", {"kind": "time", "seconds": 2.0}),
        (2, "step", {**first, "of": f"{lane}/0"}),
        (3, "wait", {"kind": "time", "seconds": 3.0}),
        (4, "step", {**first, "of": f"{lane}/0"}),
    ]
    assert {key: end["result"]["exit_status"] for key, end in steps.ends.items()} == {
        f"{lane}/0": 1,
        f"{lane}/2": 1,
        f"{lane}/4": 0,
    }
    steps.ends = {f"{lane}/{int(key.rpartition('/')[2]) + 5}": end for key, end in steps.ends.items()}
    assert (await shell(*words))[0] == b"try 3\n"  # lived through again, from the log
    assert (shell.folder / "tries").read_text() == "x\n" * 3


async def test_a_step_whose_attempts_all_fail(shell: Shell) -> None:
    shell.says = steps = Steps()
    command = ("sh", "-c", "echo x >> tries; echo half; exit 7")
    assert (await shell("step", "get", "--retries=1", "--backoff=0", "--", *command, status=7))[0] == b"half\n"
    assert (shell.folder / "tries").read_text() == "x\nx\n" and len(steps.ends) == 2


async def test_a_step_that_somebody_ends_is_not_tried_again(shell: Shell) -> None:
    shell.says = Steps()
    await shell("step", "get", "--retries", "3", "--", "sh", "-c", "kill -15 $$", status=143)
    assert [call for _, _, call, _ in shell.asked] == ["step", "step/end"]
    await shell("step", "other", "--retries", "1", "--backoff", "0", "--", "sh", "-c", "kill -9 $$", status=137)
    assert [call for _, _, call, _ in shell.asked[2:]] == ["step", "step/end", "wait", "step", "step/end"]


async def test_emit_messages_and_a_checkpoint(shell: Shell) -> None:
    shell.says = lambda call, body: {"messages": [{"role": "user"}], "snapshot": "sha256:1"}
    await shell("emit", "draft", 'a "text"')
    await shell("emit", "draft", "-", "--json", given=b' {"a": [1, 2.5e3, "\\u00e9\\ud83e\\udd89"]}\n')
    await shell("emit", "draft")
    await shell("signal", "other", "go", "[1]", "--json")
    await shell("message", "user", "-", given="h\u00e9".encode())
    assert (await shell("messages"))[0] == b'[{"role": "user"}]\n'
    assert (await shell("checkpoint", "--keep"))[0] == b"sha256:1\n"
    assert [(call, body) for _, _, call, body in shell.asked] == [
        ("emit", {"name": "draft", "value": 'a "text"'}),
        ("emit", {"name": "draft", "value": {"a": [1, 2500.0, "\u00e9\U0001f989"]}}),
        ("emit", {"name": "draft", "value": None}),
        ("signal", {"run": "other", "name": "go", "value": [1]}),
        ("message", {"message": {"role": "user", "content": "h\u00e9"}}),
        ("messages", {}),
        ("checkpoint", {"keep": True}),
    ]


async def test_commands_that_run_at_the_same_time_have_lanes_of_their_own(shell: Shell) -> None:
    names, all_there = [f"go {n}" for n in range(5)], asyncio.Event()

    async def later(call: GuestCall, body: Any) -> Any:
        if len(shell.asked) == len(names):
            all_there.set()
        await all_there.wait()
        return {"kind": "signal", "value": body["name"]}

    shell.says = later
    jobs = [asyncio.create_task(shell("wait", "signal", name)) for name in names]
    assert [said for said, _ in await asyncio.gather(*jobs)] == [f"{name}\n".encode() for name in names]
    assert {(lane, ordinal) for lane, ordinal, _, _ in shell.asked} == {(f"sh:signal:go%20{n}", 0) for n in range(5)}


async def test_lanes_that_are_named_and_names_that_are_long(shell: Shell) -> None:
    await shell("emit", "a", "--lane", "mine")
    await shell("emit", "b", PERDURE_LANE="mine")
    await shell("emit", "x" * 500)
    await shell("emit", "x" * 499 + "y")
    keys = [(lane, ordinal) for lane, ordinal, _, _ in shell.asked]
    assert keys[:2] == [("mine", 0), ("mine", 1)]
    assert keys[2][0] != keys[3][0] and all(len(lane) < 128 for lane, _ in keys)


async def test_the_answer_survives_what_happens_to_the_connection(shell: Shell) -> None:
    """A snapshot is a cut connection: the call is asked again, under its own key, and the shell sees one answer."""
    reached = asyncio.Event()

    async def hangs(call: GuestCall, body: Any) -> Any:
        reached.set()
        await asyncio.Event().wait()

    shell.says = hangs
    waiting = asyncio.create_task(shell("wait", "signal", "go"))
    await asyncio.wait_for(reached.wait(), DEADLINE_S)
    shell.says = lambda call, body: {"kind": "signal", "value": "came"}
    await shell.guest.cut()
    assert (await waiting)[0] == b"came\n"
    assert [(lane, ordinal) for lane, ordinal, _, _ in shell.asked] == [("sh:signal:go", 0)] * 2


async def test_the_hosts_refusal_is_told_with_its_hint(shell: Shell) -> None:
    shell.status = 409
    shell.says = lambda call, body: {
        "error": {"code": "conflict", "message": "a checkpoint within a step", "hint": "Later."}
    }
    _, told = await shell("checkpoint", status=125)
    assert told == "perdure-guest: a checkpoint within a step\n  Later.\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "perdure-guest: what a program asks"),
        (["wiat"], "there is no command wiat"),
        (["wait"], "not for nothing"),
        (["wait", "model"], "not for model"),
        (["wait", "signal"], "wait signal NAME"),
        (["wait", "time", "soon"], "soon is no time"),
        (["wait", "time", "3y"], "3y is no time"),
        (["wait", "time", "5m3"], "5m3 is no time"),
        (["wait", "time", ""], "nothing is no time"),
        (["wait", "approval", "a", "--show"], "--show needs a value"),
        (["wait", "approval", "a", "--show", "none.md"], "none.md: No such file"),
        (["wait", "approval", "a", "--show", "."], ".: Is a directory"),
        (["wait", "approval", "a", "--colour"], "there is no option --colour"),
        (["emit", "a", "b", "c"], "emit NAME [VALUE|-]"),
        (["emit", *"abcdefghi"], "i is one word too many"),
        (["emit", "a", "{", "--json"], "this is not JSON: {"),
        (["emit", "a", "--", "b"], "-- and a command are for step, not for emit"),
        (["emit", "a", "--lane", "auto"], "auto is no name of a lane"),
        (["step", "a"], "step NAME"),
        (["step", "a", "--retries", "-1", "--", "true"], "-1 is no number from 0 on"),
        (["step", "a", "--retries", "1.0", "--", "true"], "1.0 is no number from 0 on"),
        (["step", "a", "--backoff", "x", "--", "true"], "x is no time"),
        (["step", "a", "--"], "step NAME"),
    ],
)
async def test_what_is_wrong_is_said(shell: Shell, words: list[str], said: str) -> None:
    out, told = await shell(*words, status=125)
    assert said in told and out == b""
    assert shell.asked == []


async def test_help_and_nobody_at_the_door(shell: Shell) -> None:
    assert b"wait approval QUESTION" in (await shell("wait", "--help"))[0]
    _, told = await shell("checkpoint", PERDURE_DOOR="127.0.0.1:1", status=125)
    assert "nobody answers at 127.0.0.1:1" in told and "perdure run --image" in told
    _, told = await shell("checkpoint", PERDURE_DOOR="nonsense", status=125)
    assert "PERDURE_DOOR is nonsense" in told


NO_JSON = rb"""{|[1,]|{"a" 1}|{"a":}|01|1.|-|1e|tru|"\x"|"\u12g4"|"a|1 2""".split(b"|")


@pytest.mark.parametrize("value", [b"", *NO_JSON, b'"\x01"', b"\xff", b'"\xed\xa0\x80"', b"[" * 2000 + b"]" * 2000])
async def test_what_is_no_json(shell: Shell, value: bytes) -> None:
    _, told = await shell("emit", "a", "-", "--json", given=value, status=125)
    assert "not JSON" in told or "not UTF-8" in told
    assert shell.asked == []


@pytest.mark.parametrize(
    "value", [b"0", b"-0.5E+3", b'"\\"\\/\\b"', b"[[],{}]", b"[" * 900 + b"]" * 900, b' {"a" : null } ']
)
async def test_what_is_json(shell: Shell, value: bytes) -> None:
    await shell("emit", "a", "-", "--json", given=value)
    assert shell.asked[0][3]["value"] == json.loads(value)
