"""A program signals another run of the same server: once, however often its call is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from perdure.context.log import NewEntry, canonical, digest_of
from perdure.errors import InvalidValue
from perdure.model import Frozen
from perdure.runs.asked import Asked, Body

Deliver = Callable[[str, str, Any, str], Awaitable[str]]  # run (id, prefix or name), signal, value, id -> run id


class Sending(Frozen, frozen=True, kw_only=True):
    """Body of ``/perdure/v1/signal``."""

    run: str
    name: str
    value: Any = None


async def send(asked: Asked, deliver: Deliver) -> Body:
    """Deliver it, and then note that; asked again in between, the other run knows the signal by its id."""
    sending = asked.convert(Sending)
    if not sending.name or not sending.run:
        raise InvalidValue('a signal needs the "run" that it is for, and its "name"')
    known = await asked.warm(asked.known)
    if known:
        return {"run_id": known[0].payload["signalled"]}
    identity = digest_of(canonical([asked.run.id, asked.key, asked.request])).removeprefix("sha256:")[:32]
    run_id = await deliver(sending.run, sending.name, sending.value, identity)

    async def act() -> None:
        if not await asked.known():
            told = {"signalled": run_id, "name": sending.name, "request": asked.request}
            await asked.note(NewEntry(kind="note", key=asked.key, payload=told))

    await asked.warm(act)
    return {"run_id": run_id}
