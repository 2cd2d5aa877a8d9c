"""The list of models, in the shape of whose SDK asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from perdure.gateway import dialects
from perdure.gateway.providers import Providers
from perdure.model import Answer, Call

PATH = "/v1/models"
UNKNOWN_DATE = "1970-01-01T00:00:00Z"  # as the API has it where a model's release is not known


def is_asked(call: Call) -> bool:
    return call.method == "GET" and call.path.partition("?")[0] == PATH


def answer(call: Call, providers: Providers) -> Answer:
    """What the providers are asked for where a request names no model, of those that this SDK can talk to."""
    is_anthropic = "anthropic-version" in call.headers
    dialect = dialects.MESSAGES if is_anthropic else dialects.CHAT
    names = {
        name: provider.model or name for name, provider in providers.by_name.items() if dialect.name in provider.speaks
    }
    body = msgspec.json.encode(_anthropic(names) if is_anthropic else _openai(names))
    return Answer(200, {"content-type": "application/json"}, _once(body[call.offset :]))


def _openai(names: dict[str, str]) -> dict[str, Any]:
    data = [{"id": model, "object": "model", "created": 0, "owned_by": name} for name, model in names.items()]
    return {"object": "list", "data": data}


def _anthropic(names: dict[str, str]) -> dict[str, Any]:
    data = [
        {"id": model, "type": "model", "display_name": model, "created_at": UNKNOWN_DATE} for model in names.values()
    ]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"data": data, "has_more": False, **ends}


async def _once(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body
