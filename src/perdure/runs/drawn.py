"""Values that would be others each time: the time, a random number, an id. Drawn once, here, and answered from the log
afterwards; so a program that decides by one decides the same when it runs again."""

from __future__ import annotations

import random
import uuid

from perdure.context.log import NewEntry
from perdure.errors import InvalidValue
from perdure.model import Frozen
from perdure.runs.asked import Asked, Body
from perdure.runs.clock import Clock

KINDS = ("now", "random", "uuid")
_random = random.SystemRandom()


class Drawing(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``/perdure/v1/value``."""

    of: str


async def value(asked: Asked) -> Body:
    """``{"value"}``: seconds since 1970, a number from 0 up to 1, or a UUID (version 4) as text."""
    of = asked.convert(Drawing).of
    if of not in KINDS:
        raise InvalidValue(f"no such value: {of!r}", hint=f"It is one of {', '.join(KINDS)}.")

    async def act() -> Body:
        known = await asked.known()
        if not known:
            payload = {"of": of, "value": _drawn(of, asked.run.clock), "request": asked.request}
            known = await asked.note(NewEntry(kind="value", key=asked.key, payload=payload))
        return {"value": known[0].payload["value"]}

    return await asked.warm(act)


def _drawn(of: str, clock: Clock) -> float | str:
    if of == "now":
        return clock.time()
    return _random.random() if of == "random" else str(uuid.UUID(bytes=_random.randbytes(16), version=4))
