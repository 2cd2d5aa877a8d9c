from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perdure.client.source import AgentSource, completed, read
from perdure.errors import AgentInvalid

GOOD = """
import whatever_the_image_has
from perdure import agent
@agent(image="python", memory_mib=256, vcpus=2, durability="snapshot")
async def work(ctx): ...
@agent()
def other(ctx): ...
@agent
def bare(ctx): ...
def plain(ctx): ...
"""


def test_it_is_read_without_being_run(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(GOOD)
    assert read(f"{path}:work") == AgentSource("x.py", "work", GOOD, "python", 256, 2)
    for name in ("other", "bare"):
        assert read(f"{path}:{name}") == AgentSource("x.py", name, GOOD)


@pytest.mark.parametrize(
    ("text", "name", "message", "hint"),
    [
        (GOOD, "plain", "line 10: plain is not an agent", "@agent above"),
        (GOOD, "nobody", "no function 'nobody'", "its agents are: work, other"),
        ("x = 1", "f", "no function 'f'", "mark a function"),
        ("def f(:\n", "f", "line 1: ", "correct the file"),
        ("return 5\n", "f", "line 1: 'return' outside function", "correct"),
        ("x = '\0'", "f", "does not import", "correct"),
        ("@agent('i')\ndef f(ctx): ...", "f", "takes names only", "image="),
        ("@agent(image=NAME)\ndef f(ctx): ...", "f", "@agent(image=...) is not a literal", "without running"),
        ("@agent(image=3)\ndef f(ctx): ...", "f", "@agent(image=...) is 3", "str"),
        ("@agent(memory_mib=-1)\ndef f(ctx): ...", "f", "is -1", "positive int"),
        ("@agent(vcpus=True)\ndef f(ctx): ...", "f", "is True", "positive int"),
        ("@agent(disk=3)\ndef f(ctx): ...", "f", "@agent(disk=...) is unknown", "memory_mib"),
        ("@agent(durability='both')\ndef f(ctx): ...", "f", "durability='both' is unknown", "snapshot, replay"),
        ("@agent(retry={'fire': {'attempts': 3}})\ndef f(x): ...", "f", "kind of failure: 'fire'", "timed-out, any"),
        ("@agent(retry={'any': {'attempts': 0}})\ndef f(x): ...", "f", "(retry=...): any: attempts is 0", "to 1000"),
        ("@agent(retry={'any': {'attempts': 'x'}})\ndef f(x): ...", "f", "(retry=...): Expected `int`", "attempts"),
        ("@agent(retry={'any': {'pause': 3}})\ndef f(x): ...", "f", "(retry=...): Object contains", "attempts"),
        ("@agent(retry={3: {'attempts': 3}})\ndef f(x): ...", "f", "(retry=...): Expected `str`", "attempts"),
        ("@agent(budget={'owls': 3})\ndef f(x): ...", "f", "(budget=...): no such limit: 'owls'", "tokens, calls, usd"),
        ("@agent(budget={'usd': -1})\ndef f(x): ...", "f", "(budget=...): usd is -1", "from 0"),
        ("@agent(budget={'calls': 1.5})\ndef f(x): ...", "f", "(budget=...): Expected `int | null`", "tokens"),
        ("@agent(durability='replay', image='x')\ndef f(ctx): ...", "f", "image is of microVMs", "leave one"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, name: str, message: str, hint: str) -> None:
    path = tmp_path / "x.py"
    path.write_text(text)
    with pytest.raises(AgentInvalid) as raised:
        read(f"{path}:{name}")
    assert message in raised.value.message and hint in raised.value.hint


SAYS = """
@agent(image="python", vcpus=2, version="3", checkpoint_turns=1, idle_grace_s=5, retry={"any": {"attempts": 3}})
def f(ctx): ...
@agent(durability="replay")
def replayed(ctx): ...
@agent(budget={"calls": 9, "usd": 2.5})
def spends(ctx): ...
def plain(ctx): ...
"""


def test_what_a_request_does_not_say_is_what_the_agent_says() -> None:
    def said(function: str, **request: Any) -> dict[str, Any]:
        asked = {"source": SAYS, "file": "x.py", "function": function, **request}
        whole = completed(asked)
        assert completed(whole) == whole
        return {name: value for name, value in whole.items() if value and asked.get(name) != value}

    policy = {"checkpoint_turns": 1, "idle_grace_s": 5}
    rules = {"version": "3", "retry": {"any": {"attempts": 3}}}
    assert said("f") == {"durability": "snapshot", "image": "python", "vcpus": 2, "policy": policy, **rules}
    found = said("f", image="mine", policy={"idle_grace_s": 1}, retry={"timed-out": {"attempts": 2}}, vcpus=1)
    assert "image" not in found and "vcpus" not in found
    assert found["policy"] == {"checkpoint_turns": 1, "idle_grace_s": 1}
    assert found["retry"] == {"any": {"attempts": 3}, "timed-out": {"attempts": 2}}
    assert said("spends", budget={"usd": 1})["budget"] == {"calls": 9, "usd": 1}
    assert said("f", durability="replay") == {"policy": policy, **rules}
    assert said("replayed") == {"durability": "replay"}
    assert said("replayed", durability="snapshot", image="mine") == {}
    assert said("plain", image="mine") == said("nobody", image="mine") == {}
    assert completed({"command": ["true"]}) == {"command": ["true"]}
    with pytest.raises(AgentInvalid, match=r"^x\.py does not import: line 1"):
        completed({"source": "def f(:", "file": "x.py", "function": "f"})


@pytest.mark.parametrize("reference", ["", "x.py", "x.py:", ":f", "x.py:not a name", "x.txt:f", "missing.py:f"])
def test_what_names_no_agent(reference: str) -> None:
    with pytest.raises(AgentInvalid) as raised:
        read(reference)
    assert raised.value.hint


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(AgentInvalid, match="is not UTF-8"):
        read(f"{path}:f")
