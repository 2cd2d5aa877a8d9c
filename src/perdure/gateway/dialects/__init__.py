"""The APIs of providers: which a call speaks, and whose."""

from __future__ import annotations

import re
from urllib.parse import unquote

import msgspec

from perdure.errors import NotFound
from perdure.gateway.dialects.chat import Chat
from perdure.gateway.dialects.dialect import Dialect, decoded
from perdure.gateway.dialects.messages import Messages
from perdure.gateway.dialects.other import Other
from perdure.gateway.dialects.responses import Responses
from perdure.model import Call

CHAT, RESPONSES, MESSAGES = Chat(), Responses(), Messages()
OPENAI_OTHER, ANTHROPIC_OTHER = Other("openai-other", CHAT), Other("anthropic-other", MESSAGES)
PREFIX = "/v1/"
PATHS: dict[str, Dialect] = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
}
OPENAI = frozenset(dialect.name for dialect in (CHAT, RESPONSES, OPENAI_OTHER))
ANTHROPIC = frozenset(dialect.name for dialect in (MESSAGES, ANTHROPIC_OTHER))


_BEGINNING = re.compile(rb"\s*\{\s*")


def of(call: Call) -> Dialect:
    """The dialect that a call speaks: by its path, and for other paths by whose SDK asks."""
    path = call.path.partition("?")[0]
    if call.method == "POST" and path in PATHS:
        return PATHS[path]
    is_anthropic = "anthropic-version" in call.headers or f"{path}/".startswith("/v1/messages/")
    return ANTHROPIC_OTHER if is_anthropic else OPENAI_OTHER


def checked(call: Call) -> str:
    """The path. ``NotFound``: it is none of a provider's; a request for it would show its key to something else."""
    path = call.path.partition("?")[0]
    parts = unquote(path).removeprefix(PREFIX).split("/")
    is_plain = (
        call.path.isascii() and call.path.isprintable() and " " not in call.path and not {"", ".", ".."} & {*parts}
    )
    if call.method == "POST" and path.startswith(PREFIX) and is_plain:
        return path
    hint = f"it answers POST {', '.join(PATHS)} and others under {PREFIX}, and GET {PREFIX}models"
    raise NotFound(f"the gateway has no {call.method} {path[:200]}", hint=hint)


def naming(body: bytes, model: str) -> bytes:
    """A request that names no model, with one; whatever else it says stays byte for byte as it is."""
    value = decoded(body)
    beginning = _BEGINNING.match(body)
    if "model" in value or not value or beginning is None:
        return msgspec.json.encode({**value, "model": model})
    at = beginning.end()
    return body[:at] + b'"model":' + msgspec.json.encode(model) + b"," + body[at:]
