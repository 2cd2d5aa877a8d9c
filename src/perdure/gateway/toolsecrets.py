"""Secrets for tools: what a program asks through its door goes to one host only, with the secret put in here.

``HOME/settings.toml``::

    [secrets.github]
    base_url = "https://api.github.com"   # all that is reached with it
    header = "authorization"              # the usual one
    prefix = "Bearer "                    # before the value; usual: this one of authorization, else nothing
    value_env = "GITHUB_TOKEN"            # or value_file = "github.token", or value_command = ["pass", "github"]
    allow = ["research*", "b.py:*"]       # agents: a function's name, or FILE.py:FUNCTION

A program asks ``/perdure/secret/github/repos/…`` of its door. Its method, body and headers travel as they are, but for
those of the connection; so does the answer. Nobody is sent elsewhere with the secret: redirects are the program's.
"""

from __future__ import annotations

import asyncio
import io
import os
import shlex
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin

import aiohttp
import msgspec
from yarl import URL

from perdure.errors import InvalidValue, NoRights, NotFound, PerdureError, ProviderFailed, Unavailable
from perdure.gateway import baseurls
from perdure.gateway.keys import CommandKey, FileKey, Key
from perdure.gateway.turn import Turn
from perdure.host.paths import Home
from perdure.host.settings import document, place
from perdure.model import Answer, Call, SecretUse

PREFIX = "/perdure/secret/"
CONNECT_S = 15.0
SILENCE_S = 600.0
ANSWER_MAX = 64 << 20
LARGE = 1 << 20  # bytes; aiohttp wants to read larger bodies piece by piece
KEEP_S = 60.0  # so long may a request that nobody hears be asked for again, by a node whose connection broke
KEPT_MAX = 1 << 20  # bytes of an answer; a larger one only until it was read
KEPT_ALL_MAX = 64 << 20  # bytes of all that are complete
METHODS = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))
# Of a connection (RFC 9110, 7.6.1), or framed anew.
OF_CONNECTION = frozenset(
    (
        "connection", "content-length", "expect", "host", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    )
)  # fmt: skip
CUT = b"\n\x00perdure: the answer broke off here, and is not whole\n"  # nothing of this is JSON, or any other text
KNOWN = ("base_url", "header", "prefix", "value_env", "value_file", "value_command", "allow")


@dataclass(frozen=True)
class ToolSecret:
    """``allow``: patterns of names of agents."""

    base_url: str
    value: Key = field(repr=False)
    header: str = "authorization"
    prefix: str = "Bearer "
    allow: tuple[str, ...] = ()


class EnvironmentKey:
    """A value of this process's environment."""

    def __init__(self, value: str) -> None:
        self._value = value

    async def read(self, *, refused: str = "") -> str:
        return self._value


@dataclass(eq=False)
class _Open:
    """A request that is on its way, or was answered just now."""

    key: tuple[str, int, str]
    turn: Turn
    listeners: int = 0
    timer: asyncio.TimerHandle | None = None  # while there is none
    is_kept: bool = False  # it is complete, and counted as such


class ToolSecrets:
    """The secrets of one home, and the requests that are on their way with them."""

    def __init__(self, by_name: Mapping[str, ToolSecret]) -> None:
        self._by_name = by_name
        self._open: dict[tuple[str, int, str], _Open] = {}
        self._kept = 0  # bytes of those that are complete
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        tasks = [one.turn.task for one in self._open.values() if one.turn.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in [*self._open.values()]:
            self._drop(one)
        if self._session is not None:
            await self._session.close()

    def use(self, call: Call, agents: Sequence[str]) -> SecretUse:
        """What the call asks, if an agent of one of these names may. NotFound, NoRights, InvalidValue."""
        whole, question, query = call.path.removeprefix(PREFIX).partition("?")
        name, slash, rest = whole.partition("/")
        path = slash + rest + question + query
        secret = self._by_name.get(name)
        if secret is None:
            hint = "On the host: a table [secrets.NAME] in settings.toml"
            raise NotFound(f"there is no secret {name[:80]!r}", hint=hint)
        if not any(fnmatchcase(agent, pattern) for agent in agents for pattern in secret.allow):
            hint = f"On the host: allow of [secrets.{name}] in settings.toml names who may"
            raise NoRights(f"{agents[0] if agents else 'this run'} may not use the secret {name!r}", hint=hint)
        if call.method not in METHODS:
            raise InvalidValue(f"a secret is not used with the method {call.method[:20]!r}")
        _check(path)
        return SecretUse(name, call.method, path)

    def is_open(self, call: Call) -> bool:
        """Whether its request is on its way, or was answered just now."""
        return _key(call) in self._open

    async def answer(self, call: Call, use: SecretUse) -> Answer:
        """The host's answer, its body from ``call.offset`` on; as it comes, whoever listens."""
        one = self._open.get(_key(call))
        if one is None and call.offset:
            return Answer(200, {}, _once(CUT))  # the rest of it has gone, with a server or for want of room
        if one is None:
            one = self._open[_key(call)] = _Open(_key(call), Turn(call))
            one.turn.task = asyncio.create_task(self._fill(one, use))
        with self._listening(one):
            await one.turn.begun()
        return Answer(one.turn.status, one.turn.headers, self._read(one, call.offset))

    async def _read(self, one: _Open, offset: int) -> AsyncIterator[bytes]:
        with self._listening(one):
            async for piece in one.turn.read(offset):
                yield piece
        if one.turn.size > KEPT_MAX:
            self._drop(one)

    @contextmanager
    def _listening(self, one: _Open) -> Iterator[None]:
        """Who hears it. What nobody hears is broken off after a while: its run may have ended, or wants no more."""
        one.listeners += 1
        if one.timer is not None:
            one.timer.cancel()
        try:
            yield
        finally:
            one.listeners -= 1
            if not one.listeners:
                one.timer = asyncio.get_running_loop().call_later(KEEP_S, self._drop, one)

    def _drop(self, one: _Open) -> None:
        if one.timer is not None:
            one.timer.cancel()
        if self._open.get(one.key) is one:
            del self._open[one.key]
            if one.is_kept:
                self._kept -= one.turn.size
            elif not one.turn.is_over and one.turn.task is not None:
                one.turn.task.cancel()

    def _keep(self, one: _Open) -> None:
        """It is complete. Where that is too much the oldest ones go."""
        one.is_kept, self._kept = True, self._kept + one.turn.size
        if self._kept > KEPT_ALL_MAX:
            for old in [*self._open.values()]:
                if old.is_kept and not old.listeners and self._kept > KEPT_ALL_MAX:
                    self._drop(old)

    async def _fill(self, one: _Open, use: SecretUse) -> None:
        turn = one.turn
        try:
            await self._ask(turn, use)
        except asyncio.CancelledError:
            turn.fail(Unavailable("the server is ending", hint="ask again"))
            raise
        except Exception as error:  # a task has nobody above it: the asker gets the error
            if turn.has_begun:
                turn.break_off(CUT)
            else:
                told = error if isinstance(error, PerdureError) else ProviderFailed(_why(use.secret, error))
                turn.begin(told.http_status, {"content-type": "application/json"})
                turn.add(msgspec.json.encode({"error": told.to_json()}))
                turn.end()
        if self._open.get(one.key) is one:
            self._keep(one)

    async def _ask(self, turn: Turn, use: SecretUse) -> None:
        secret, is_renewed = self._by_name[use.secret], False
        value = await secret.value.read()
        while True:
            async with self._request(secret, value, turn.call, use) as answer:
                if answer.status == 401 and not is_renewed:
                    is_renewed, former, value = True, value, await secret.value.read(refused=value)
                    if value != former:
                        continue
                turn.begin(answer.status, _answered(answer, secret, value, use))
                async for piece in answer.content.iter_any():
                    turn.add(piece)
                    turn.show(turn.size)
                    if turn.size > ANSWER_MAX:
                        raise ProviderFailed(f"the answer is over {ANSWER_MAX >> 20} MiB")
                turn.end()
                return

    def _request(
        self, secret: ToolSecret, value: str, call: Call, use: SecretUse
    ) -> aiohttp.client._RequestContextManager:
        skipped = OF_CONNECTION | {secret.header, *_named(call.headers.get("connection", ""))}
        headers = {
            name: text
            for name, text in call.headers.items()
            if name not in skipped and not name.startswith("perdure-") and "perdure-run-" not in text
        }
        headers.setdefault("accept-encoding", "identity")
        headers[secret.header] = secret.prefix + value
        return self._connected().request(
            use.method,
            URL(secret.base_url.rstrip("/") + use.path, encoded=True),
            data=io.BytesIO(call.body) if len(call.body) > LARGE else call.body or None,
            headers=headers,
            skip_auto_headers=("Content-Type", "User-Agent", "Accept"),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
        )

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            # no cookies: what one run is given is not sent in the name of another
            jar = aiohttp.DummyCookieJar()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), auto_decompress=False, cookie_jar=jar
            )
        return self._session


def _key(call: Call) -> tuple[str, int, str]:
    return call.run_id, call.epoch, call.key


def _check(path: str) -> None:
    """InvalidValue: it would leave the base URL, or somebody on the way might read it so."""
    plain = path.partition("?")[0]
    is_text = path.isascii() and path.isprintable() and not {" ", "\\", "#"} & {*path}
    while True:
        parts = plain.split("/")
        if not is_text or {".", ".."} & {*parts} or "" in parts[1:-1] or "\\" in plain:
            hint = "a path below the secret's base URL, without '..', empty parts or a host"
            raise InvalidValue(f"not a path: {path[:80]!r}", hint=hint)
        if (unquoted := unquote(plain)) == plain:
            return
        plain = unquoted  # and that may be unquoted again by somebody


def _named(connection: str) -> set[str]:
    """The headers that are of this connection alone."""
    return {name.strip().lower() for name in connection.split(",")}


def _answered(answer: aiohttp.ClientResponse, secret: ToolSecret, value: str, use: SecretUse) -> dict[str, str]:
    """The answer's headers, without those of the connection, and without any that repeats the secret."""
    skipped = OF_CONNECTION | _named(answer.headers.get("connection", ""))
    headers: dict[str, str] = {}
    for name, text in answer.headers.items():
        name = name.lower()
        is_list = name in headers and name != "set-cookie"  # RFC 9110, 5.3
        headers[name] = f"{headers[name]}, {text}" if is_list else text
    headers = {name: text for name, text in headers.items() if name not in skipped and value not in text}
    if (where := headers.get("location")) is not None:
        base = secret.base_url.rstrip("/")
        found = urljoin(base + use.path, where)
        if found.startswith(base + "/"):  # the same host: by the same door
            headers["location"] = f"{PREFIX}{use.secret}{found.removeprefix(base)}"
    return headers


def _why(name: str, error: Exception) -> str:
    if isinstance(error, aiohttp.SocketTimeoutError):
        return f"secret {name}: its host said nothing for {SILENCE_S:g} s"
    return f"secret {name}: its host cannot be asked: {str(error) or type(error).__name__}"


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def load(home: Home, environ: Mapping[str, str] | None = None) -> ToolSecrets:
    """Those of ``HOME/settings.toml``. InvalidValue names the wrong line."""
    env, tables = os.environ if environ is None else environ, document(home).get("secrets", {})
    if not isinstance(tables, dict):
        raise InvalidValue(f"{place(home)}: secrets is not a table", hint="write [secrets.NAME] sections")
    return ToolSecrets({name: _secret(home, name, table, env) for name, table in tables.items()})


def _secret(home: Home, name: str, table: Any, env: Mapping[str, str]) -> ToolSecret:
    where = f"{place(home)}: [secrets.{name}]"
    if not isinstance(table, dict):
        raise InvalidValue(f"{where} is not a table", hint="write base_url, value_env and allow under it")
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise InvalidValue(f"{where}: not a name of a secret", hint="letters, digits, '-' and '_'")
    if unknown := sorted(table.keys() - set(KNOWN)):
        raise InvalidValue(f"{where}: unknown setting {unknown[0]!r}", hint=f"known are {', '.join(KNOWN)}")
    for key in ("base_url", "header", "prefix", "value_env", "value_file"):
        if not isinstance(table.get(key, ""), str):
            raise InvalidValue(f"{where}: {key} is not a string", hint="put it in quotes")
    url = baseurls.checked(table.get("base_url", ""), f"{where}: base_url")
    header = table.get("header", "authorization").lower()
    if header in OF_CONNECTION or not header.replace("-", "").isalnum() or not header.isascii():
        raise InvalidValue(f"{where}: header is {header!r}", hint='"authorization", "x-api-key" …')
    allow = table.get("allow")
    if not isinstance(allow, list) or not all(isinstance(agent, str) and agent for agent in allow):
        raise InvalidValue(f"{where}: allow is no list of agents", hint='for example ["research*"], or ["*"]: all')
    prefix = table.get("prefix", "Bearer " if header == "authorization" else "")
    if not prefix.isascii() or not prefix.isprintable():
        raise InvalidValue(f"{where}: prefix is {prefix!r}", hint='"Bearer "')
    return ToolSecret(url, _value(home, name, table, where, env), header, prefix, tuple(allow))


def _value(home: Home, name: str, table: dict[str, Any], where: str, env: Mapping[str, str]) -> Key:
    given = [key for key in ("value_env", "value_file", "value_command") if key in table]
    if len(given) != 1:
        said = " and ".join(given) or "no value"
        hint = "one of value_env, value_file and value_command; the value itself is not written there"
        raise InvalidValue(f"{where}: has {said}", hint=hint)
    title = f"secret {name}"  # who asks is told this, and not where on the host things are
    if given == ["value_file"]:
        return FileKey(home.root / Path(table["value_file"]).expanduser(), title)
    if given == ["value_env"]:
        value = env.get(table["value_env"], "")
        if not value or not value.isascii() or not value.isprintable():
            hint = f"export {table['value_env']}=VALUE before perdure up"
            raise InvalidValue(f"{where}: the environment has no {table['value_env']}", hint=hint)
        return EnvironmentKey(value)
    words = table["value_command"]
    try:
        words = shlex.split(words) if isinstance(words, str) else words
    except ValueError as error:
        raise InvalidValue(f"{where}: value_command: {error}", hint='["pass", "github"]') from error
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise InvalidValue(f"{where}: value_command is no command", hint='for example ["pass", "github"]')
    return CommandKey(words, title)
