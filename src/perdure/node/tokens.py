"""The tokens of the node's API: ``HOME/tokens.json``, and the routes that make, list and remove them.

A token is ``fcrun_ID_SECRET``: 12 hex digits that name it, and 256 random bits. Only the SHA-256 of the secret is kept.
Slow hashes are for what people choose, which can be guessed; to guess 256 random bits is hopeless at any speed, and a
slow hash would only let whoever sends wrong tokens keep the node busy.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import msgspec
from aiohttp import web

from perdure.errors import Conflict, InvalidValue, NotFound, ProtocolError, Unauthorized
from perdure.execution.snapshots.diskspace import space_checked
from perdure.linux import durable
from perdure.model import Frozen, TokenInfo, is_id, new_id
from perdure.node.answers import body, ok

VERSION = 1
PREFIX = "fcrun"
SECRET_BYTES = 32
EXPIRES_MAX_S = 100 * 366 * 86400.0
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}\Z")
_HINT = "`fcrun token create` on the node makes one; FCRUN_TOKEN or FCRUN_TOKEN_FILE gives it to fcrun."

_log = logging.getLogger(__name__)


class Scope(StrEnum):
    """What a token is good for."""

    ALL = "all"  # everything, as whoever runs the node
    OWN = "own"  # the sandboxes that it made, and what comes of them; nobody else's are there for it
    READ = "read"  # sees everything, changes and runs nothing


class Kept(Frozen, frozen=True, kw_only=True):
    """A token as it is kept."""

    id: str
    name: str
    scope: Scope
    sha256: str  # of the secret, in hex
    created: float
    expires: float | None = None

    @property
    def info(self) -> TokenInfo:
        return TokenInfo(id=self.id, name=self.name, scope=str(self.scope), created=self.created, expires=self.expires)


class _File(Frozen, frozen=True, kw_only=True):
    version: int
    tokens: list[Kept] = msgspec.field(default_factory=list)


class Tokens:
    """All of a node. One that does not read is as if there were none: nobody comes in, and nothing is overwritten."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._problem = ""
        self._tokens: dict[str, Kept] = {}
        self.removed: Callable[[str], None] = lambda token_id: None  # told of each that is no more
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_File)
            if found.version > VERSION:
                self._problem = f"{path} has version {found.version}: a newer Perdure wrote it"
            else:
                self._tokens = {token.id: token for token in found.tokens}
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._problem = f"{path} does not read: {error}"
        if self._problem:
            _log.error("no token is good for anything: %s", self._problem)

    def all(self) -> list[Kept]:
        """Newest first."""
        return sorted(self._tokens.values(), key=lambda token: token.created, reverse=True)

    def create(self, name: str, scope: Scope, expires_s: float | None) -> tuple[Kept, str]:
        """A new one, durably, and its text, which nobody can find out later. Raises Conflict, InvalidValue, NoSpace."""
        token_id, secret = new_id(), secrets.token_urlsafe(SECRET_BYTES)
        if name and not _NAME.match(name):
            raise InvalidValue(
                f"invalid token name {name!r}",
                hint="Use at most 63 letters, digits, '_', '.' and '-', beginning with a letter or a digit.",
            )
        name = name or f"token-{token_id}"
        if any(name in (token.name, token.id) for token in self._tokens.values()):
            raise Conflict(f"there is a token {name} already", hint=f"Remove it first: fcrun token rm {name}")
        token = Kept(
            id=token_id,
            name=name,
            scope=scope,
            sha256=_digest(secret),
            created=time.time(),
            expires=_expiry(expires_s),
        )
        self._save({**self._tokens, token_id: token})
        return token, f"{PREFIX}_{token_id}_{secret}"

    def renew(self, ref: str, expires_s: float | None) -> tuple[Kept, str]:
        """Another text for a token, which keeps its sandboxes; the former is good for nothing from now on, and what it
        has open ends. Raises NotFound, InvalidValue, NoSpace."""
        former, secret = self._find(ref), secrets.token_urlsafe(SECRET_BYTES)
        token = msgspec.structs.replace(former, sha256=_digest(secret), expires=_expiry(expires_s))
        self._save({**self._tokens, token.id: token})
        self.removed(token.id)
        return token, f"{PREFIX}_{token.id}_{secret}"

    def remove(self, ref: str) -> Kept:
        """By id or name; what it has open ends. Raises NotFound."""
        gone = self._find(ref)
        self._save({key: token for key, token in self._tokens.items() if token is not gone})
        self.removed(gone.id)
        return gone

    def _find(self, ref: str) -> Kept:
        found = [token for token in self._tokens.values() if ref in (token.id, token.name)]
        if not found:
            raise NotFound(f"no such token: {ref}", hint="`fcrun token ls` lists all.")
        return found[0]

    def authenticate(self, authorization: str) -> Kept:
        """The token of an ``Authorization`` header. Raises Unauthorized.

        However wrong it is, it takes as long: its digest is compared in constant time, with a random one where there
        is no such token.
        """
        kind, _, text = authorization.partition(" ")
        parts = text.strip().split("_", 2)
        if kind.lower() != "bearer" or len(parts) != 3 or parts[0] != PREFIX or not is_id(parts[1]):
            raise Unauthorized("this is no token of fcrun", hint=_HINT)
        token = self._tokens.get(parts[1])
        nobody = secrets.token_hex(SECRET_BYTES)
        expected = token.sha256 if token is not None else nobody
        if not hmac.compare_digest(_digest(parts[2]), expected) or token is None:
            raise Unauthorized("the token is not valid: it was removed, or is mistyped", hint=_HINT)
        if token.expires is not None and time.time() >= token.expires:
            raise Unauthorized(f"the token {token.name} has expired", hint=_HINT)
        return token

    def _save(self, tokens: dict[str, Kept]) -> None:
        if self._problem:
            raise ProtocolError(self._problem, hint="Correct it or move it away, and start the node again.")
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            with space_checked(str(self._path)):
                descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(msgspec.json.encode(_File(version=VERSION, tokens=[*tokens.values()])))
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(self._path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        durable.sync(self._path.parent)
        self._tokens = tokens


def _expiry(expires_s: float | None) -> float | None:
    if expires_s is None:
        return None
    if not 0 < expires_s <= EXPIRES_MAX_S:
        raise InvalidValue(f"a token cannot expire in {expires_s:g} seconds", hint="Write 12h or 30d.")
    return time.time() + expires_s


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


class _Create(Frozen, frozen=True, kw_only=True):
    name: str = ""
    scope: Scope = Scope.OWN
    expires_s: float | None = None


class _Renew(Frozen, frozen=True, kw_only=True):
    expires_s: float | None = None


class TokensApi:
    """Handlers."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/tokens", self.list),
            web.post("/v1/tokens", self.create),
            web.post("/v1/tokens/{ref}/renew", self.renew),
            web.delete("/v1/tokens/{ref}", self.remove),
        ]

    async def list(self, request: web.Request) -> web.Response:
        return ok([token.info for token in self._tokens.all()])

    async def create(self, request: web.Request) -> web.Response:
        wish = await body(request, _Create)
        token, text = self._tokens.create(wish.name, wish.scope, wish.expires_s)
        return ok(msgspec.to_builtins(token.info) | {"token": text}, 201)

    async def renew(self, request: web.Request) -> web.Response:
        wish = await body(request, _Renew)
        token, text = self._tokens.renew(request.match_info["ref"], wish.expires_s)
        return ok(msgspec.to_builtins(token.info) | {"token": text})

    async def remove(self, request: web.Request) -> web.Response:
        return ok(self._tokens.remove(request.match_info["ref"]).info)
