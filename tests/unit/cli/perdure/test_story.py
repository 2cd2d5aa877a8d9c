"""What ``perdure show`` prints: the product's face, held line by line."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cli.perdure import _words
from perdure.cli.perdure._story import _TELLERS, WIDTH, Story
from perdure.model import Entry, Spent

MORNING = 1_772_352_000.0  # 2026-03-01 08:00:00 UTC


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    os.environ.pop("TZ", None)
    time.tzset()


def entry(seq: int, after_s: float, kind: str, payload: Any = None, *, epoch: int = 1, key: str | None = None) -> Entry:
    moment = MORNING + after_s
    return Entry(run_id="r", branch=1, seq=seq, epoch=epoch, time=moment, kind=kind, key=key, payload=payload)


LIFE = [
    ("run.queued", 0, {}),
    ("run.starting", 0.1, {"epoch": 1}),
    ("run.running", 1, {}),
    ("model.intent", 2, {"messages": [{"role": "user", "content": "What are owls?"}]}),
    ("model.started", 2, {"provider": "offline", "attempt": 1}),
    ("model.committed", 3, {"text": "Owls are\nbirds.", "usage": {"prompt_tokens": 9, "completion_tokens": 5},
                            "seconds": 0.6}),
    ("wait.started", 4, {"wait": {"id": "w1", "kind": "approval", "name": "Go on?"}}),
    ("run.waiting", 4, {}),
    ("run.suspending", 5, {}),
    ("snapshot", 6, {"snapshot": {"memory_bytes": 4_000_000, "disk_bytes": 100_000, "state_bytes": 100_000,
                                  "total_s": 0.8}}),
    ("run.suspended", 6, {"stored_bytes": 4_200_000}),
    ("wait.completed", 10_806, {"wait": "w1", "kind": "approval", "outcome": "completed", "by": "ann",
                                "value": {"approved": True, "comment": "fine"}}),
    ("run.resuming", 10_806, {"epoch": 2}),
    ("run.running", 10_807, {"epoch": 2}),
    ("run.recovering", 10_809, {"cause": "machine-died", "detail": "firecracker was killed"}),
    ("model.replayed", 10_811, {"seq": 6}),
    ("step.result", 10_812, {"name": "count", "result": 2}),
    ("emit", 10_812, {"name": "state", "value": {"counter": 2}}),
    ("run.completed", 10_813, {"result": {"counter": 2}}),
]  # fmt: skip

TOLD = """\
-- 2026-03-01 --
08:00:00  run       queued
08:00:00  run       starting                                                                 epoch 1
08:00:02  agent     asks: What are owls?
08:00:03  model     Owls are birds.                                                9+5 tokens  0.60s
08:00:04  agent     asks for approval: Go on?
08:00:06  machine   snapshot, in 0.80s                                                        4.2 MB
08:00:06  run       suspended: the machine is gone                                            4.2 MB
11:00:06  ann       approved: fine                                                      after 3h 00m
                    ~~~ asleep for 3h 00m: no machine, 4.2 MB stored ~~~
11:00:06  run       waking up
11:00:09  run       recovering: machine-died (firecracker was killed)
11:00:11  model     answered again from the log, not asked                                  0 tokens
11:00:12  step      count = 2
11:00:12  agent     state: {"counter": 2}
11:00:13  run       completed: {"counter": 2}
"""


def test_a_life_is_told_line_by_line() -> None:
    story = Story()
    lines = [
        line for seq, (kind, at, payload) in enumerate(LIFE, 1) for line in story.lines(entry(seq, at, kind, payload))
    ]
    assert "\n".join(lines) + "\n" == TOLD
    assert max(len(line) for line in lines) <= WIDTH


_payloads = st.dictionaries(
    st.sampled_from(
        ["name", "value", "text", "usage", "seconds", "wait", "error", "result", "why", "cause", "messages", "signal",
         "snapshot", "outcome", "kind", "message", "by"]
    ),
    st.none() | st.text() | st.integers() | st.dictionaries(st.sampled_from(["name", "id", "content"]), st.text()),
)  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from([*sorted(_TELLERS), "unheard.of"]), _payloads), max_size=6), st.integers(60, 120)
)
def test_no_entry_breaks_the_story_or_the_width(entries: list[tuple[str, Any]], width: int) -> None:
    story = Story(width)
    for seq, (kind, payload) in enumerate(entries, 1):
        for line in story.lines(entry(seq, seq, kind, payload)):
            assert len(line) <= width and "\n" not in line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.004, "0.00s"), (9.99, "9.99s"), (59.94, "59.9s"), (61, "1m 01s"), (7200, "2h 00m"), (3 * 86400, "3d 0h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert _words.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (4_200_000, "4.2 MB"), (2.5e15, "2500.0 TB")])
def test_sizes(count: float, text: str) -> None:
    assert _words.size(count) == text


def test_the_replay_road_has_no_machine_and_no_snapshots() -> None:
    story = Story()
    answered = [{"call": "step", "name": f"step number {number}", "seq": number} for number in range(20)]
    told = [
        ("run.queued", 0, {"request": {"durability": "replay"}}),
        ("wait.completed", 1, {"wait": "of before", "kind": "signal", "outcome": "completed"}),
        ("run.suspended", 1, {}),
        ("run.resuming", 4, {}),
        ("run.recovering", 4, {}),
        ("run.running", 4, {"from": "start"}),
        ("replayed", 4, {"steps": 20, "answered": answered}),
        ("diverged", 5, {"policy": "fail", "recorded": {"kind": "step", "seq": 4}}),
        ("run.failed", 5, {"error": {"code": "agent-failed", "type": "KeyError", "message": "'price'"}}),
    ]
    lines = [
        line for seq, (kind, at, payload) in enumerate(told, 1) for line in story.lines(entry(seq, at, kind, payload))
    ]
    text = "\n".join(lines)
    assert "the signal was taken\n" in text  # how long it took is not known here
    assert "suspended: the process is gone" in text and "asleep for 3.00s: no process ~~~" in text
    assert "recovering: the process was lost" in text and "begins again: the log answers what it has" in text
    assert all(f"number {number} (entry {number})" in " ".join(text.split()) for number in range(20))
    assert "went another way than the log at entry 4: policy fail" in text
    assert text.endswith("failed: KeyError: 'price'")
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize(("seconds", "text"), [(0.5, "0.5s"), (90, "90s"), (900, "15m"), (86400, "1d"), (5400, "90m")])
def test_periods(seconds: float, text: str) -> None:
    assert _words.period(seconds) == text


def test_a_set_of_waits_is_told_with_its_parts() -> None:
    story = Story()
    parts = [
        {"id": "p0", "kind": "signal", "name": "go", "of": "s"},
        {"id": "p1", "kind": "time", "until": MORNING + 60, "absolute": True, "of": "s"},
    ]
    lines = [
        *story.lines(entry(1, 0, "wait.started", {"wait": {"id": "s", "kind": "any"}, "parts": parts})),
        *story.lines(entry(2, 5, "wait.completed", {"wait": "p0", "kind": "signal", "of": "s", "index": 0})),
        *story.lines(entry(3, 5, "wait.completed", {"wait": "s", "kind": "any", "order": [0], "outcome": "completed"})),
    ]
    assert lines == [
        "-- 2026-03-01 --",
        "08:00:00  agent     waits for any of 2: waits for the signal 'go', sleeps until 2026-03-01 08:01:00",
        "08:00:05  run       the signal was taken",
        "08:00:05  run       any of them: that is it                                              after 5.00s",
    ]


def test_where_a_run_goes_on_and_what_it_was_not_taken_from_is_told() -> None:
    here = {"id": "b", "host": "hostb", "address": "unix:///var/lib/b.sock"}
    before = {"id": "a", "host": "hosta", "address": "unix:///var/lib/a.sock"}
    passed = [{"snapshot": "sha256:1", "seq": 9, "why": "it is at node a only"}]
    told = Story(120)
    lines = [
        line
        for seq, (kind, payload) in enumerate(
            [
                ("run.starting", {"from": "start", "passed": passed}),
                ("run.running", {"snapshot": "sha256:2", "node": here, "node_before": before, "store": "s3://x/y"}),
            ],
            1,
        )
        for line in told.lines(entry(seq, seq, kind, payload, epoch=2))
    ]
    assert [line[20:].rstrip() for line in lines[1:]] == [
        "begins again: no snapshot on its way is at hand".ljust(93) + "epoch 2",
        "the snapshot of entry 9 is passed over: it is at node a only",
        "goes on from the snapshot that it slept in".ljust(93) + "epoch 2",
        "at node b (hostb: /var/lib/b.sock); it was at node a (hosta: /var/lib/a.sock)",
        "from the copy of the snapshot in s3://x/y",
    ]


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "What are"}, {"text": "owls?"}]}]},
         "What are owls?"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "three"}]}]}, "three"),
        ({"messages": [{"content": [{"type": "tool_result", "content": [{"type": "text", "text": "3"}]}]}]}, "3"),
        ({"messages": [{"type": "function_call_output", "output": "four"}]}, "four"),
        ({"messages": [], "path": "/v1/embeddings"}, "/v1/embeddings"),
        ({"messages": [{"content": [{"type": "image"}]}]}, "image"),
    ],
)  # fmt: skip
def test_what_a_model_is_asked_in_any_api(payload: dict[str, Any], shown: str) -> None:
    assert shown in "\n".join(Story().lines(entry(1, 0, "model.intent", payload)))


def test_tools_that_a_model_calls() -> None:
    usage = {"input_tokens": 105, "output_tokens": 33, "cached_tokens": 90, "cache_written_tokens": 10}
    payload = {"text": "", "usage": usage, "tool_calls": [{"id": "1", "name": "look"}, {"id": "2", "name": "hunt"}]}
    told = "\n".join(Story().lines(entry(1, 0, "model.committed", payload)))
    assert "calls look, hunt" in told and "105+33 tokens" in told


def test_what_a_turn_costs() -> None:
    payload = {"text": "hi", "usage": {"input_tokens": 9, "output_tokens": 5}, "cost_usd": 0.000102, "seconds": 1}
    assert "  9+5 tokens  $0.000102  1.00s" in "\n".join(Story().lines(entry(1, 0, "model.committed", payload)))
    payload |= {"estimated": True, "cost_usd": 2.5}
    assert "  ~9+5 tokens  $2.50  1.00s" in "\n".join(Story().lines(entry(1, 0, "model.committed", payload)))


@pytest.mark.parametrize(
    ("spent", "told"),
    [
        (Spent(), ""),
        (Spent(calls=1), ""),
        (Spent(calls=2, input_tokens=1200, output_tokens=34, cost_usd=0.0042), "1,200+34 tokens, $0.0042"),
        (
            Spent(calls=2, input_tokens=1200, output_tokens=34, cached_tokens=1000, cost_usd=12.346, unpriced=1),
            "1,200+34 tokens (1,000 of them from a cache), $12.35, 1 turn without a known price",
        ),
        (Spent(calls=2, input_tokens=9, output_tokens=3, unpriced=2), "9+3 tokens, 2 turns without a known price"),
        (Spent(calls=1, input_tokens=9, output_tokens=3, cost_usd=0.5, estimated=1), "about 9+3 tokens, about $0.50"),
    ],
)
def test_what_a_run_has_spent(spent: Spent, told: str) -> None:
    assert _words.spent(spent) == told


def test_what_else_is_told_of_the_way_out() -> None:
    used = {"secret": "github", "method": "GET", "path": ""}
    assert "agent     asks github: GET /" in "\n".join(Story().lines(entry(1, 0, "secret.used", used)))
    begun = {"provider": "work", "attempt": 1, "waited_s": 12.5}
    assert "asked when its turn came" in (told := "\n".join(Story().lines(entry(1, 0, "model.started", begun))))
    assert told.endswith("12.5s")
    assert not list(Story().lines(entry(1, 0, "model.started", {**begun, "waited_s": 0.5})))
    budget = {"budget": {"tokens": 0, "calls": None, "usd": 2.5}}
    assert "outside   may spend usd=2.5" in "\n".join(Story().lines(entry(1, 0, "budget", budget)))
    assert "as much as it likes" in "\n".join(Story().lines(entry(1, 0, "budget", {"budget": {"usd": 0}})))
