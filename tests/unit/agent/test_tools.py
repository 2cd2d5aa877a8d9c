"""Tools, as a guest runs them: what a model is told of functions, and what comes of its calls of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import END, Door, Guest

pytestmark = pytest.mark.timeout(60)

HEAD = "from perdure import Context, agent\n"


def calls(*wanted: tuple[str, Any]) -> list[bytes]:
    """A turn that uses tools: (name, arguments), as text where they are no JSON."""
    told = [
        {
            "id": f"c{number}",
            "type": "function",
            "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
        }
        for number, (name, given) in enumerate(wanted)
    ]
    message = {"role": "assistant", "content": None, "tool_calls": told}
    return [json.dumps({"model": "m", "choices": [{"message": message, "finish_reason": "tool_calls"}]}).encode()]


DESCRIBED = """
from __future__ import annotations
import functools
from dataclasses import dataclass, field
from typing import Annotated, Literal, Optional
from perdure import agent
@dataclass
class Nest:
    tree: str
    eggs: int = 0
def decorated(function):
    @functools.wraps(function)
    def inner(*args, **kwargs): return function(*args, **kwargs)
    return inner
@decorated
def plain(a: str, b: int, c: float, d: bool, e: list, f: dict, g, *, h=1):
    \"\"\"Do it.

    Really.
    \"\"\"
class Owl:
    def made(self, a: Annotated[str, "the name"], b: Literal["x", "y"], c: int | None, d: Optional[list[Nest]] = None,
             e: dict[str, float] = {}, idempotency_key=""): ...
@agent()
def f(ctx):
    known = {"type": "function", "function": {"name": "own", "parameters": {"type": "object"}}}
    turn = ctx.chat("hi", tools=[plain, ctx.tool(Owl().made, name="make"), known])
    return turn.tool_calls
"""


def test_a_model_is_told_of_functions_by_their_signatures(guest: Guest, door: Door) -> None:
    door.streams = [[json.dumps({"choices": [{"message": {"role": "assistant", "content": "no"}}]}).encode()]]
    assert guest.result(DESCRIBED) == []
    plain, made, own = (tool["function"] for tool in door.bodies("/v1/chat/completions")[0]["tools"])
    kinds = {"a": "string", "b": "integer", "c": "number", "d": "boolean", "e": "array", "f": "object"}
    properties = {name: {"type": kind} for name, kind in kinds.items()} | {"g": {}, "h": {}}
    assert (plain["name"], plain["description"]) == ("plain", "Do it.\n\nReally.")
    assert plain["parameters"] == {"type": "object", "properties": properties, "required": list("abcdefg")}
    nest = {"tree": {"type": "string"}, "eggs": {"type": "integer"}}
    nests = {"type": "array", "items": {"type": "object", "properties": nest, "required": ["tree"]}}
    assert made["name"] == "make" and "description" not in made
    assert made["parameters"]["required"] == ["a", "b", "c"]
    assert made["parameters"]["properties"] == {
        "a": {"type": "string", "description": "the name"},
        "b": {"enum": ["x", "y"]},
        "c": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "d": {"anyOf": [nests, {"type": "null"}]},
        "e": {"type": "object", "additionalProperties": {"type": "number"}},
    }
    assert own == {"name": "own", "parameters": {"type": "object"}}


LOOP = (
    HEAD
    + """
from dataclasses import dataclass
@dataclass
class Nest:
    tree: str
def pay(amount: float, idempotency_key: str = "") -> dict: return {"paid": amount, "key": idempotency_key}
def look(nests: list[Nest]) -> list: return [nest.tree for nest in nests]
def broken(): raise KeyError("k")
@agent()
def f(ctx):
    def ask(question: str) -> bool:
        verdict = AWAIT ctx.approval(question)
        return verdict.approved
    def fails(): raise OSError("gone")
    tools = [ctx.tool(pay, effect="idempotent"), ctx.tool(look, effect="read-only"), ctx.tool(broken), ask, fails]
    messages = [{"role": "user", "content": "hi"}]
    while (turn := AWAIT ctx.chat(messages, tools=tools)).tool_calls:
        messages.append(turn.message)
        for call in turn.tool_calls:
            messages.append(AWAIT ctx.use(call))
    return [turn.text, AWAIT ctx.tool(pay)(5)]
"""
)


@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_model_asks_for_is_done_and_what_goes_wrong_is_told_to_it(
    guest: Guest, door: Door, is_async: bool
) -> None:
    wanted = [
        ("pay", {"amount": 3}),
        ("look", {"nests": [{"tree": "oak"}]}),
        ("ask", {"question": "Sure?"}),
        ("broken", {}),
        ("fails", ""),
        ("fly", {}),
        ("pay", {"amount": "much"}),
        ("pay", {"amount": 1, "idempotency_key": "mine"}),
        ("look", {"nests": [{"bush": 1}]}),
        ("pay", "{"),
        ("pay", [1]),
    ]
    said = json.dumps({"choices": [{"message": {"role": "assistant", "content": "done"}}]}).encode()
    door.streams, door.waits = [calls(*wanted), [said]], {"Sure?": {"approved": True}}
    source = LOOP.replace("AWAIT ", "await " if is_async else "")
    if is_async:
        source = source.replace("def f(", "async def f(").replace("def ask", "async def ask")
    text, paid = guest.result(source)
    assert text == "done" and paid["paid"] == 5
    answers = [m for m in door.bodies("/v1/chat/completions")[1]["messages"] if m["role"] == "tool"]
    assert [answer["tool_call_id"] for answer in answers] == [f"c{number}" for number in range(len(wanted))]
    heard = [answer["content"] for answer in answers]
    assert json.loads(heard[0]) == {"paid": 3.0, "key": "idem-main/2"}
    assert heard[1:5] == ['["oak"]', "true", "KeyError: 'k'", "OSError: gone"]
    assert heard[5] == "InvalidValue: there is no tool 'fly'; there are: pay, look, broken, ask, fails"
    assert heard[6] == "InvalidValue: the argument 'amount' is to be float, and is str: \"much\""
    assert heard[7] == "InvalidValue: pay takes no argument 'idempotency_key'; it takes: amount"
    assert heard[8].startswith("InvalidValue: the argument 'nests'[0]: Nest has no 'bush'")
    assert heard[9].startswith("InvalidValue: the arguments of pay are not JSON")
    assert heard[10] == "InvalidValue: the arguments of pay are to be an object, and are list"
    assert door.bodies("step") == [
        {"name": "pay", "on_doubt": "retry", "args": {"amount": 3.0}},
        {"name": "look", "on_doubt": "retry", "args": {"nests": [{"tree": "oak"}]}},
        {"name": "broken", "on_doubt": "ask", "args": {}},
        {"name": "pay", "on_doubt": "ask", "args": [5, {}]},
    ]


def test_a_streamed_turn_has_its_calls_too(guest: Guest, door: Door) -> None:
    def piece(**call: Any) -> bytes:
        choice = {"index": 0, "delta": {"tool_calls": [{"index": 0, **call}]}}
        return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"

    first = piece(id="c1", function={"name": "add", "arguments": '{"a": 1,'})
    door.streams = [[first, piece(function={"arguments": ' "b": 2}'}), END]]
    source = """
def add(a: int, b: int) -> int: return a + b
@agent()
def f(ctx):
    stream = ctx.chat_stream("hi", tools=[add])
    (call,) = stream.turn.tool_calls
    return [call.name, call.arguments, ctx.use(call)]
"""
    answer = {"role": "tool", "tool_call_id": "c1", "content": "3"}
    assert guest.result(HEAD + source) == ["add", {"a": 1, "b": 2}, answer]


def test_what_is_in_doubt_and_declared_to_fail_is_not_for_the_model_to_do_again(guest: Guest, door: Door) -> None:
    door.streams = [calls(("pay", {}))]
    door.steps = {"main/2": {"error": {"type": "InDoubt", "message": "it may have taken effect"}}}
    source = """
def pay(): ...
@agent()
def f(ctx): return ctx.use(ctx.chat("hi", tools=[ctx.tool(pay, ON_DOUBT)]).tool_calls[0])["content"]
"""
    error = guest.error(HEAD + source.replace("ON_DOUBT", 'on_doubt="fail"'))
    assert error["code"] == "step-failed" and "may have taken effect" in error["message"]
    door.streams = [calls(("pay", {}))]  # a person has decided
    assert guest.result(HEAD + source.replace("ON_DOUBT", "")) == "InDoubt: it may have taken effect"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("ctx.tool(g, effect='twice')", "ctx.tool: effect='twice' is unknown"),
        ("ctx.tool(g, effect='idempotent', on_doubt='ask')", "on_doubt='ask' with effect='idempotent'"),
        ("ctx.tool(g, on_doubt='retry')", "on_doubt='retry' with effect='once'"),
        ("ctx.tool(len)", "is no function"),
        ("ctx.chat('x', tools=[g, ctx.tool(g)])", "two tools are called 'g'"),
        ("ctx.chat('x', tools=[lambda: 1])", "a tool is called '<lambda>'"),
        ("ctx.chat('x', tools=['g'])", "is no function"),
        ("ctx.tool(later)", "the tool 'later' is a coroutine function"),
        ("ctx.chat('x', tools=[later])", "the tool 'later' is a coroutine function"),
        ("ctx.tool(g)(object())", "tool 'g': what it is called with is not a JSON value"),
    ],
)
def test_tools_that_are_none(guest: Guest, door: Door, call: str, words: str) -> None:
    error = guest.error(HEAD + f"def g(a=1): ...\nasync def later(): ...\n@agent()\ndef f(ctx): {call}\n")
    assert error["code"] == "invalid-value" and words in error["message"]
    assert not door.bodies("/v1/chat/completions") and not door.bodies("step")
