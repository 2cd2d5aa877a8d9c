"""Hooks of the server: ``HOME/settings.toml``, and how deliveries leave it.

``HOME/settings.toml``::

    [hooks]
    secret_env = "HOOK_SECRET"         # or secret = "...": signs deliveries to the hooks that runs bring along

    [hooks.pager]
    url = "https://pager.example.org/perdure"    # or command = ["notify", "--json"]
    states = ["failed", "waiting"]     # completed, failed and cancelled, where it says nothing
    secret_env = "PAGER_SECRET"        # or secret = "...", or neither

A delivery is a POST of JSON with ``Perdure-Delivery`` (its id, the same when it is sent again) and, where there is a
secret, ``Perdure-Signature``: ``t=SECONDS,v1=HEX``, HMAC-SHA256 with the secret over ``SECONDS.BODY``. It was taken
when the answer is 2xx. A command has the JSON on its stdin and the id in ``PERDURE_DELIVERY``; it took it when it ends
with 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from perdure.errors import InvalidValue, Unavailable
from perdure.host import settings
from perdure.host.paths import Home
from perdure.runs.hook import Hook

TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 60.0


def load(home: Home, environ: Mapping[str, str] | None = None) -> tuple[dict[str, Hook], str]:
    """The hooks by name, and the secret for those of runs. InvalidValue names the wrong line."""
    env, place = os.environ if environ is None else environ, settings.place(home)
    table = settings.document(home).get("hooks", {})
    if not isinstance(table, dict):
        raise InvalidValue(f"{place}: hooks is not a table", hint="write [hooks.NAME] sections")
    own = {name: value for name, value in table.items() if not isinstance(value, dict)}
    secret = _secret(own, f"{place}: [hooks]", env)
    if own:
        raise InvalidValue(f"{place}: [hooks]: unknown setting {min(own)!r}", hint="known are secret and secret_env")
    found = {}
    for name, value in table.items():
        if isinstance(value, dict):
            where, fields = f"{place}: [hooks.{name}]", dict(value)
            fields["secret"] = _secret(fields, where, env)
            if name.isdigit() or "/" in name:
                raise InvalidValue(f"{where} is no name of a hook", hint="letters, digits and dashes")
            try:
                found[name] = msgspec.convert(fields, Hook)
                found[name].check()
            except (msgspec.ValidationError, InvalidValue) as error:
                raise InvalidValue(f"{where}: {error}", hint='For example url = "https://example.org/hook"') from error
    return found, secret


def _secret(table: dict[str, Any], where: str, env: Mapping[str, str]) -> str:
    """Taken out of the table."""
    secret, name = table.pop("secret", ""), table.pop("secret_env", None)
    if name is not None:
        secret = env.get(str(name), "")
        if not secret:
            raise InvalidValue(f"{where}: the environment has no {name}", hint="set it, or leave secret_env out")
    if not isinstance(secret, str):
        raise InvalidValue(f"{where}: secret is no text")
    return secret


def signature(secret: str, at: int, body: bytes) -> str:
    """The value of ``Perdure-Signature``."""
    digest = hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


class HookSender:
    """``runs.hooks.Sender``. Close it."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, hook: Hook, delivery: str, body: bytes) -> None:
        await (self._post(hook, delivery, body) if hook.url else self._run(hook, delivery, body))

    async def _post(self, hook: Hook, delivery: str, body: bytes) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        headers = {"Content-Type": "application/json", "Perdure-Delivery": delivery}
        if hook.secret:
            headers["Perdure-Signature"] = signature(hook.secret, int(time.time()), body)
        try:
            async with self._session.post(hook.url, data=body, headers=headers, allow_redirects=False) as answer:
                if not 200 <= answer.status < 300:
                    raise Unavailable(f"{hook.url} answered {answer.status}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"{hook.url}: {str(error) or 'no answer in time'}") from error

    async def _run(self, hook: Hook, delivery: str, body: bytes) -> None:
        process = await asyncio.create_subprocess_exec(
            *hook.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            env={**os.environ, "PERDURE_DELIVERY": delivery},
        )
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await process.communicate(body)
        except TimeoutError:
            raise Unavailable(f"{hook.command[0]} did not end within {COMMAND_TIMEOUT_S:.0f} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            raise Unavailable(f"{hook.command[0]} ended with exit status {process.returncode}")
