"""A ledger outside that guests of real microVMs reach: what they do to the world is a line in it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from dataclasses import dataclass, field

from aiohttp import web

from perdure.host.paths import Home
from perdure.testing.crash.provider import Hold

NETWORK = "203.0.113"  # TEST-NET-3 (RFC 5737)


def address(home: Home) -> str:
    """For the ledger of a home. What this machine is called when its emulated host starts no guest of it reaches: this
    it is not called until then."""
    return f"{NETWORK}.{int(home.tag, 16) % 254 + 1}"


def remove(home: Home) -> tuple[str, ...]:
    """The command that does it. Of a program that was killed: before the emulated host starts."""
    return ("ip", "address", "del", f"{address(home)}/32", "dev", "lo")


@dataclass
class WebLedger:
    """``url``, while it is open; as root, once what runs below the line is up: each life has a path of it."""

    home: Home
    lines: list[tuple[float, str, str]] = field(default_factory=list)
    holds: dict[tuple[str, str], Hold] = field(default_factory=dict)  # by life and step: the first time
    url: str = ""
    _runner: web.AppRunner | None = None

    def done(self) -> list[tuple[float, str, str]]:
        return self.lines

    async def open(self) -> None:
        here = address(self.home)
        await asyncio.to_thread(subprocess.run, ["ip", "address", "add", f"{here}/32", "dev", "lo"], check=True)
        app = web.Application()
        app.router.add_post("/{life}", self._write)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, here, 0).start()
        self.url = f"http://{here}:{self._runner.addresses[0][1]}/"

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        await asyncio.to_thread(subprocess.run, remove(self.home), check=False, capture_output=True)

    async def _write(self, request: web.Request) -> web.Response:
        said = json.loads(await request.read())
        self.lines.append((time.time(), said["run"], said["step"]))
        if hold := self.holds.pop((request.match_info["life"], said["step"]), None):
            await hold.here()
        return web.Response(text=f"{said['step']} done")
