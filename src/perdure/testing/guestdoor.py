"""The door of one run's guest as programs in it see it: HTTP on a loopback port, in the run's name."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
from aiohttp import web

from perdure.errors import PerdureError
from perdure.model import Call
from perdure.runs.policy import NEVER_S, Policy
from perdure.server.failures import failure
from perdure.testing.house import House
from perdure.testing.machines import Ask

AWAKE = Policy(idle_grace_s=NEVER_S)  # of a run whose door is used
MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]


def waits() -> Generator[Any, Any, Any]:
    """A program of such a run: what others in its machine ask is asked by a test."""
    yield Ask("wait", {"kind": "signal", "name": "go"})
    yield Ask("complete", {})


class GuestDoor:
    """What guestd and a node do, without a machine: programs are numbered as they ask, on lane ``auto``."""

    def __init__(self, house: House, run_id: str) -> None:
        self._house = house
        self._run_id = run_id
        self.ordinals = itertools.count()  # begun anew: as after a restore
        self.asked = 0  # requests, of SDKs that ask again too
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        run_id, engine = self._run_id, self._house.engine
        self.asked += 1
        call = Call(
            run_id=run_id,
            epoch=engine._runs[run_id].record.epoch,
            lane="auto",
            ordinal=next(self.ordinals),
            method=request.method,
            path=request.raw_path,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.read(),
        )
        try:
            answer = await engine.answer(call, engine.endpoint(run_id, call.epoch).token)
        except PerdureError as error:
            return failure(error)
        response = web.StreamResponse(status=answer.status, headers=dict(answer.headers))
        await response.prepare(request)
        async for piece in answer.body:
            await response.write(piece)
        return response


@asynccontextmanager
async def guest_door(house: House, run_id: str) -> AsyncIterator[GuestDoor]:
    """``url`` is where a guest finds ``http://127.0.0.1:4750``. The run is to be warm, and to stay so."""
    door = GuestDoor(house, run_id)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", door.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    door.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield door
    finally:
        await runner.cleanup()


@asynccontextmanager
async def sdks(
    door: GuestDoor, key: str = "placeholder"
) -> AsyncIterator[tuple[openai.AsyncOpenAI, anthropic.AsyncAnthropic]]:
    """The unmodified SDKs of OpenAI and Anthropic, as programs behind this door have them."""
    # nothing here has TLS, and to read this machine's certificates takes longer than most tests
    plain, also_plain = openai.DefaultAsyncHttpxClient(verify=False), anthropic.DefaultAsyncHttpxClient(verify=False)
    of_openai = openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key=key, http_client=plain)
    of_anthropic = anthropic.AsyncAnthropic(base_url=door.url, api_key=key, http_client=also_plain)
    async with of_openai, of_anthropic:
        yield of_openai, of_anthropic
