"""The door of one run's guest as programs in it see it: HTTP on a loopback port, in the run's name."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from perdure.model import Call
from perdure.testing.house import House


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
        answer = await engine.answer(call, engine.endpoint(run_id, call.epoch).token)
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
