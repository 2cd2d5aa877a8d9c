"""How the tools here answer: JSON values, and errors that a model can read."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Any, ParamSpec

import msgspec
from mcp.server.mcpserver import MCPServer
from mcp.types import CallToolResult, TextContent, ToolAnnotations

from perdure.errors import PerdureError

P = ParamSpec("P")
Answer = dict[str, Any]

LOOKS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
CHANGES = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
RUNS_CODE = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True)


def add(server: MCPServer[Any], tool: Callable[..., Answer], hints: ToolAnnotations) -> None:
    """Offer a method as a tool: its name without what it begins with for Python, its docstring for the model."""
    server.add_tool(_telling(tool), annotations=hints, description=" ".join((tool.__doc__ or "").split()))


def _telling(tool: Callable[P, Answer]) -> Callable[P, Any]:
    """The same, with our errors as results: the SDK keeps back what an unknown exception says."""

    @functools.wraps(tool)
    async def told(*args: P.args, **given: P.kwargs) -> Any:
        try:
            return await _aside(functools.partial(tool, *args, **given))
        except PerdureError as error:
            text = TextContent(type="text", text=f"{error.code}: {error}")
            return CallToolResult(content=[text], structured_content={"error": error.to_json()}, is_error=True)

    return told


async def _aside(call: Callable[[], Any]) -> Any:
    """In a thread of its own: many may wait for long, and neither the others nor the end of this process wait for
    them."""
    loop, answer = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def told(result: Any, error: BaseException | None) -> None:
        if answer.done():
            return  # nobody waits for it any more
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    def work() -> None:
        result, failure = None, None
        try:
            result = call()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(told, result, failure)

    threading.Thread(target=work, daemon=True).start()
    return await answer


def plain(value: Any) -> Any:
    """A value of ours as JSON has it."""
    return msgspec.to_builtins(value)
