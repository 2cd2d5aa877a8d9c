"""A turn from the bytes of its answer, as servers of models write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perdure.agent.completion import Completion


def _streamed(*deltas: str, **fields: Any) -> tuple[list[str], str]:
    """The pieces of text, and all of it."""
    read, told = Completion(stream=True), []
    for delta in deltas:
        value = {"choices": [{"index": 0, "delta": {"content": delta}, "finish_reason": None}], **fields}
        told += read.feed(b"data: " + json.dumps(value).encode() + b"\n\n")
    told += read.feed(b"data: [DONE]\n\n")
    return told, read.turn(200).text


def test_an_error_that_is_null_is_none() -> None:
    """Some servers have the field in each answer."""
    assert _streamed("owls", error=None) == (["owls"], "owls")
    whole = Completion(stream=False)
    list(whole.feed(b'{"error": null, "choices": [{"message": {"role": "assistant", "content": "owls"}}]}'))
    assert whole.turn(200).text == "owls"


@pytest.mark.parametrize(
    ("deltas", "told"),
    [
        (["owl \ud83e", "\udd89!"], ["owl ", "\U0001f989!"]),
        (["\ud83e", "", "\udd89"], ["\U0001f989"]),
        (["\ud83e", "owl"], ["\ufffdowl"]),
        (["\udd89"], ["\ufffd"]),
        (["\U0001f989"], ["\U0001f989"]),
    ],
)
def test_a_character_that_was_cut_in_two_is_whole(deltas: list[str], told: list[str]) -> None:
    assert _streamed(*deltas) == (told, "".join(told))


def test_a_half_at_the_end_is_none() -> None:
    told, text = _streamed("owl \ud83e")
    assert told == ["owl "] and json.loads(json.dumps(text).encode()) == text == "owl \ufffd"
