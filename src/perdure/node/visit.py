"""One request at the node's border: whose it is, what it may send, and what the audit is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perdure.errors import NoRights, TooLarge, TooSlow
from perdure.model import SandboxSpec
from perdure.node import wishes

if TYPE_CHECKING:
    from aiohttp import web

    from perdure.execution.sandboxes.acting import Acting
    from perdure.node.access import Rule
    from perdure.node.tokens import Scope


@dataclass(frozen=True)
class Caller:
    """``source``: ``unix`` or ``ADDRESS:PORT``; a user of this machine has ids, a token has its own and its name."""

    source: str
    scope: Scope
    uid: int | None = None
    pid: int | None = None
    token: str = ""
    name: str = ""
    expires: float | None = None

    def told(self) -> dict[str, Any]:
        """Who it is, for the audit."""
        users = {"uid": self.uid, "pid": self.pid} if self.uid is not None else {}
        return users | ({"token": self.token, "name": self.name} if self.token else {})


@dataclass
class Visit:
    """``end`` is called once, with the status and the error's code, before the client hears how it went."""

    caller: Caller
    acting: Acting
    rule: Rule
    patience_s: float  # how long a client may send nothing while something is expected of it
    end: Callable[[int, str], None] = lambda status, code: None
    facts: dict[str, Any] = field(default_factory=dict)


_current: ContextVar[Visit | None] = ContextVar("visit", default=None)


def current() -> Visit | None:
    """The request that this task answers."""
    return _current.get()


def begin(visit: Visit) -> None:
    _current.set(visit)


def check_length(request: web.Request, limit: int | None) -> None:
    """Raises TooLarge where the header says already that it is more."""
    if limit is not None and (request.content_length or 0) > limit:
        raise _too_large(request, limit)


def _too_large(request: web.Request, limit: int) -> TooLarge:
    return TooLarge(
        f"the body of {request.method} {request.path} has more than {limit} bytes",
        hint="docs/formats/node-api.md has the limits.",
        limit=limit,
    )


async def pieces(request: web.Request) -> AsyncIterator[bytes]:
    """The request's body as it comes. Raises TooLarge above the route's limit, TooSlow when nothing comes for too
    long: an upload may take its time, as long as it goes on."""
    visit = current()
    limit = visit.rule.body_bytes if visit is not None else None
    patience_s = visit.patience_s if visit is not None else None
    count = 0
    while True:
        try:
            async with asyncio.timeout(patience_s):
                data = await request.content.readany()
        except TimeoutError:
            raise TooSlow(
                f"the body of {request.method} {request.path} stopped after {count} bytes, for {patience_s:g} s"
            ) from None
        if not data:
            return
        count += len(data)
        if limit is not None and count > limit:
            raise _too_large(request, limit)
        yield data


def check_wish(wish: Any) -> None:
    """Raises NoRights for what only those who may do everything may wish for, whatever route it came by."""
    visit = current()
    if visit is None or visit.acting.is_trusted:
        return
    if isinstance(wish, SandboxSpec):
        wishes.check(wish)
    elif any(getattr(one, "calls", None) is not None for one in (wish, *getattr(wish, "forks", ()))):
        raise NoRights("calls is for tokens of scope all", hint="They go where the node can go.")
