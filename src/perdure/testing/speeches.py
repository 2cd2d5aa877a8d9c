"""What providers say, in each dialect: whole answers, and streams event by event."""

from __future__ import annotations

import json
from typing import Any

from perdure.gateway.events import event

MODEL = "real-model"


def _named(*values: dict[str, Any]) -> list[bytes]:
    return [event(json.dumps(value).encode(), value["type"]) for value in values]


# -- OpenAI's Chat Completions


def chat(text: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }


def chat_calls(*calls: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """It wants these tools to be used, with these arguments."""
    made = chat("")
    functions = [{"name": name, "arguments": json.dumps(given)} for name, given in calls]
    told = [{"id": f"call_{n}", "type": "function", "function": one} for n, one in enumerate(functions)]
    made["choices"][0] |= {"finish_reason": "tool_calls", "message": {"role": "assistant", "tool_calls": told}}
    return made


def all_used(tools: list[Any]) -> dict[str, Any]:
    """It wants each of these tools to be used, with something of what its schema says."""
    functions = [tool["function"] for tool in tools]
    given = {"string": "owls", "integer": 2, "number": 2, "boolean": True}
    calls = []
    for function in functions:
        wanted = function["parameters"]["properties"]
        calls.append((function["name"], {name: given[kind["type"]] for name, kind in wanted.items()}))
    return chat_calls(*calls)


def chat_events(*words: str) -> list[bytes]:
    """One per word, a final one with the usage, and [DONE]."""
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    told: list[dict[str, Any]] = [
        {**base, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]} for word in words
    ]
    told.append({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    usage = {"prompt_tokens": 3, "completion_tokens": len(words), "total_tokens": 3 + len(words)}
    told.append({**base, "choices": [], "usage": usage})
    return [*(event(json.dumps(value).encode()) for value in told), event(b"[DONE]")]


# -- Anthropic's Messages

MESSAGE: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "stop_sequence": None}
TOOL: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
USAGE = {"input_tokens": 5, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 10, "output_tokens": 1}


def message(text: str) -> dict[str, Any]:
    content = [{"type": "text", "text": text}]
    return {**MESSAGE, "content": content, "stop_reason": "end_turn", "usage": {**USAGE, "output_tokens": 2}}


def message_events(*words: str) -> list[bytes]:
    """With a ping, a thought and its signature, an event of tomorrow, and a tool that is used."""
    thought = [
        {"type": "thinking_delta", "thinking": "owls"},
        {"type": "signature_delta", "signature": "c2ln"},
    ]
    said = [{"type": "text_delta", "text": word} for word in words]
    using = [{"type": "input_json_delta", "partial_json": part} for part in ('{"at": ', '"owls"}')]
    blocks = [
        ({"type": "thinking", "thinking": "", "signature": ""}, thought),
        ({"type": "text", "text": ""}, said),
        (TOOL, using),
    ]
    start = {**MESSAGE, "content": [], "stop_reason": None, "usage": USAGE}
    told: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, (block, deltas) in enumerate(blocks):
        told.append({"type": "content_block_start", "index": index, "content_block": block})
        told += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        told.append({"type": "content_block_stop", "index": index})
    told += [
        {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 20}},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {"output_tokens": 33},
        },
        {"type": "message_stop"},
    ]
    return _named(*told)


MESSAGE_ERROR = event(b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', "error")
CHAT_ERROR = event(b'{"error":{"message":"Overloaded","type":"server_error","param":null,"code":"overloaded"}}')


# -- OpenAI's Responses


def response(text: str, *, call: bool = False, **fields: Any) -> dict[str, Any]:
    said = {"type": "output_text", "text": text, "annotations": []}
    output: list[dict[str, Any]] = [
        {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [said]}
    ]
    if call:
        named = {"type": "function_call", "id": "f", "call_id": "call_1", "name": "look", "arguments": "{}"}
        output.append({**named, "status": "completed"})
    usage = {
        "input_tokens": 40,
        "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 4},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 46,
    }
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": MODEL,
        "status": "completed",
        "output": output,
        "usage": usage,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        **fields,
    }


def response_events(*words: str, end: str = "response.completed", **fields: Any) -> list[bytes]:
    """With an event of tomorrow, and a function that is called."""
    begun = response("", output=[], status="in_progress", usage=None)
    text = "".join(words)
    item = {"type": "message", "id": "m", "role": "assistant", "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    at = {"item_id": "m", "output_index": 0, "content_index": 0}
    told: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **at, "part": part},
        *({"type": "response.output_text.delta", **at, "delta": word, "logprobs": []} for word in words),
        {"type": "response.output_text.done", **at, "text": text, "logprobs": []},
        {"type": end, "response": response(text, call=True, **fields)},
    ]
    return _named(*({**value, "sequence_number": number} for number, value in enumerate(told)))


RESPONSE_ERROR = event(
    b'{"type":"error","error":{"type":"server_error","code":"overloaded","message":"Overloaded","param":null},'
    b'"sequence_number":4}',
    "error",
)


# so many events at the end of a stream say that all was said: of a chat also the one with its finish_reason, as some
# servers send nothing after it
ENDS = {"openai-chat": 3, "openai-responses": 1, "anthropic-messages": 1}
