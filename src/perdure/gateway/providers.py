"""Which providers there are, and where a request for a model goes. Keys live here, on the host, and nowhere else.

``HOME/settings.toml``::

    provider = "work"                  # the default; else the first one, else the offline provider

    [providers.work]
    base_url = "https://models.example.org/v1"
    kind = "openai"                    # the usual one; or "anthropic"; or "any": it is asked in both ways
    key_env = "WORK_KEY"               # or key = "...", or key_file = "work.key", or key_command = ["pass", "work"]
    model = "small-1"                  # asked where a request names no model
    models = ["small-*", "large-*"]    # these models go here whatever the default is
    fallbacks = ["mirror", "spare:m2"] # who is asked where this one fails, and there for another model
    ca_file = "/etc/work-ca.pem"       # who signs its certificate, where that is nobody whom this machine knows
    silence_s = 600.0                  # so long may nothing come before it is given up
    requests_per_minute = 50           # these three: who is more waits for its turn (gateway.limits)
    tokens_per_minute = 100_000
    concurrent = 8

The environment comes first: ``OPENAI_API_KEY`` and/or ``OPENAI_BASE_URL`` make the provider ``openai`` (model:
``PERDURE_MODEL``), ``ANTHROPIC_API_KEY``, ``ANTHROPIC_AUTH_TOKEN`` and/or ``ANTHROPIC_BASE_URL`` the provider
``anthropic``: of a table of that name fallbacks, models, silence_s and limits count then. ``PERDURE_PROVIDER`` names
the default. ``offline`` is always there: a small real model on this machine.
"""

from __future__ import annotations

import os
import shlex
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from perdure.errors import InvalidValue, NotFound
from perdure.gateway import baseurls, dialects
from perdure.gateway.keys import CommandKey, FileKey, Key
from perdure.gateway.limits import Limits
from perdure.gateway.offline_process import OfflineProcess
from perdure.host.paths import Home
from perdure.host.settings import document as read
from perdure.host.settings import place

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_MODEL = "gpt-4o-mini"
ANTHROPIC_URL = "https://api.anthropic.com"
ANTHROPIC_VERSION = "2023-06-01"  # asked for where a request asks for none
OFFLINE = "offline"
SILENCE_S = 600.0  # reasoning models are silent for minutes
SILENCE_MOST_S = 86400.0
KINDS = {  # the dialects that a provider speaks
    "openai": dialects.OPENAI,
    "anthropic": dialects.ANTHROPIC,
    "any": dialects.OPENAI | dialects.ANTHROPIC,
}
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent")
LIMIT_MOST = 10**12
KEYS = ("key", "key_env", "key_file", "key_command")
WHO = (*KEYS, "base_url", "ca_file", "kind", "model")  # is asked, and in which way
FULL = ("ca_file", "key_env", "key_file")  # an empty text is none of these


@dataclass(frozen=True)
class Endpoint:
    """Where to ask: ``base_url`` ends before the ``/chat/completions`` or ``/messages`` of a path; ``headers`` carry
    the key."""

    base_url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: ssl.SSLContext | None = None
    key: str = field(default="", repr=False, compare=False)


class Provider(Protocol):
    """Somebody who answers model calls."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str:
        """The model where a request names none."""
        ...

    @property
    def speaks(self) -> frozenset[str]:
        """Names of dialects."""
        ...

    @property
    def silence_s(self) -> float:
        """So long may nothing come."""
        ...

    async def endpoint(self, dialect: str = dialects.CHAT.name, *, refused: str = "") -> Endpoint:
        """Where to ask now; called before each attempt. A provider on this machine is started here. refused: a key
        that is good no more."""
        ...


@dataclass(frozen=True)
class RemoteProvider:
    """An HTTP API with a key, or without."""

    name: str
    base_url: str
    key: str = field(default="", repr=False)
    model: str = ""
    kind: str = "openai"
    key_from: Key | None = field(default=None, repr=False)
    is_bearer: bool = False  # also where its kind has another way to show a key
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    silence_s: float = SILENCE_S

    @property
    def speaks(self) -> frozenset[str]:
        return KINDS[self.kind]

    async def endpoint(self, dialect: str = dialects.CHAT.name, *, refused: str = "") -> Endpoint:
        key = self.key if self.key_from is None else await self.key_from.read(refused=refused)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        if dialect in dialects.ANTHROPIC and key and not self.is_bearer:
            headers = {"x-api-key": key}
        url = self.base_url.rstrip("/")
        if self.kind == "anthropic" and not url.endswith("/v1"):  # its SDK's base URLs end before that
            url += "/v1"
        return Endpoint(url, headers, self.tls, key)


@dataclass(frozen=True)
class OfflineProvider:
    """SmolLM2 on this machine, in a process of its own."""

    process: OfflineProcess
    name: str = OFFLINE
    model: str = "SmolLM2-135M-Instruct"
    speaks: frozenset[str] = frozenset(dialect.name for dialect in dialects.PATHS.values())
    silence_s: float = SILENCE_S

    async def endpoint(self, dialect: str = dialects.CHAT.name, *, refused: str = "") -> Endpoint:
        return Endpoint(await self.process.ensure())


class Place(NamedTuple):
    """Where a request may go."""

    provider: Provider
    model: str = ""  # that is asked there instead of the one that the request names; "": that one


@dataclass(frozen=True)
class Providers:
    """The providers of one home. ``routes``: (pattern of a model's name, provider's name), first match wins.
    ``fallbacks``: by a provider's name those that are asked where it fails, with the model there ("": the same).
    ``limits``: by a provider's name, of those that have some."""

    by_name: Mapping[str, Provider]
    default: str
    routes: tuple[tuple[str, str], ...] = ()
    fallbacks: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    limits: Mapping[str, Limits] = field(default_factory=dict)

    def places(self, model: str, dialect: str) -> list[Place]:
        """Where a request goes, and where then. ``NotFound``: nobody speaks its dialect."""
        first = self.for_model(model, dialect)
        others = [Place(self.by_name[name], other) for name, other in self.fallbacks.get(first.name, ())]
        return [Place(first), *(place for place in others if dialect in place.provider.speaks)]

    def for_model(self, model: str, dialect: str = dialects.CHAT.name) -> Provider:
        """The provider that a request for ``model`` ("" = none named) goes to: of those that speak the dialect the one
        of the first route that fits, else the default, else the first. ``NotFound``: nobody speaks it."""
        able = {name: provider for name, provider in self.by_name.items() if dialect in provider.speaks}
        for pattern, name in self.routes:
            if model and fnmatchcase(model, pattern) and name in able:
                return able[name]
        if self.default in able:
            return able[self.default]
        for name, provider in able.items():
            if name != OFFLINE:  # who has another default does not mean a very small model
                return provider
        variable = "ANTHROPIC_API_KEY" if dialect in dialects.ANTHROPIC else "OPENAI_API_KEY"
        raise NotFound(
            f"no provider here speaks {dialect}", hint=f"on the host, set {variable} or name one in settings.toml"
        )


def load(home: Home, environ: Mapping[str, str] | None = None) -> Providers:
    """The providers of ``HOME/settings.toml`` and the environment. ``InvalidValue`` names the wrong line."""
    env = os.environ if environ is None else environ
    settings, document = place(home), read(home)
    given = _of_environment(env)
    found: dict[str, Provider] = {**given}
    fallbacks: dict[str, list[tuple[str, str]]] = {}
    routes: list[tuple[str, str]] = []
    limits: dict[str, Limits] = {}
    tables = document.get("providers", {})
    if not isinstance(tables, dict):
        raise InvalidValue(f"{settings}: providers is not a table", hint="write [providers.NAME] sections")
    for name, table in tables.items():
        where = f"{settings}: [providers.{name}]"
        if not isinstance(table, dict):
            raise InvalidValue(f"{where} is not a table", hint="write base_url, key_env and models under it")
        if name == OFFLINE:
            raise InvalidValue(f"{where}: this one is always there", hint="give yours another name")
        if name in given:  # the environment is nearer to the person who started this: it says who that is
            rest = {key: value for key, value in table.items() if key not in WHO}
            provider, patterns = _provider(home, name, {**rest, "base_url": given[name].base_url}, where, env)
            found[name] = replace(given[name], silence_s=provider.silence_s)
        else:
            found[name], patterns = _provider(home, name, table, where, env)
        routes += [(pattern, name) for pattern in patterns]
        fallbacks[name] = _fallbacks(table, where)
        if (limit := _limits(table, where)) != Limits():
            limits[name] = limit
    found[OFFLINE] = OfflineProvider(OfflineProcess(home))
    default = env.get("PERDURE_PROVIDER") or document.get("provider") or next(iter(found))
    if not isinstance(default, str):
        hint = "the name of one; their own tables are [providers.NAME]"
        raise InvalidValue(f"{settings}: provider is no name of a provider", hint=hint)
    if default not in found:
        raise NotFound(f"there is no provider {default!r}", hint=f"{settings} and the environment have {list(found)}")
    for name, others in fallbacks.items():
        for other, _ in others:
            if other not in found or other == name:
                hint = f"others are {', '.join(sorted(found.keys() - {name}))}"
                raise InvalidValue(
                    f"{settings}: [providers.{name}]: fallbacks: {other!r} is no other provider", hint=hint
                )
    return Providers(found, default, tuple(routes), fallbacks, limits)


def _of_environment(env: Mapping[str, str]) -> dict[str, RemoteProvider]:
    found = {}
    if env.get("OPENAI_API_KEY") or env.get("OPENAI_BASE_URL"):
        url = baseurls.checked(env.get("OPENAI_BASE_URL") or OPENAI_URL, "OPENAI_BASE_URL")
        key = _key(env.get("OPENAI_API_KEY", ""), "OPENAI_API_KEY")
        found["openai"] = RemoteProvider("openai", url, key, env.get("PERDURE_MODEL") or OPENAI_MODEL)
    if any(env.get(f"ANTHROPIC_{name}") for name in ("API_KEY", "AUTH_TOKEN", "BASE_URL")):
        url = baseurls.checked(env.get("ANTHROPIC_BASE_URL") or ANTHROPIC_URL, "ANTHROPIC_BASE_URL")
        key, token = env.get("ANTHROPIC_API_KEY", ""), env.get("ANTHROPIC_AUTH_TOKEN", "")
        found["anthropic"] = RemoteProvider(
            "anthropic",
            url,
            _key(key or token, "ANTHROPIC_API_KEY"),
            env.get("ANTHROPIC_MODEL", ""),
            "anthropic",
            is_bearer=not key,
        )
    return found


def _provider(
    home: Home, name: str, table: dict[str, Any], where: str, env: Mapping[str, str]
) -> tuple[RemoteProvider, list[str]]:
    texts = {"base_url", "key", "key_env", "key_file", "model", "kind", "ca_file"}
    known = texts | {"fallbacks", "key_command", "models", "silence_s", *LIMITS}
    if unknown := sorted(set(table) - known):
        raise InvalidValue(f"{where}: unknown setting {unknown[0]!r}", hint=f"known are {sorted(known)}")
    patterns, silence_s, kind = table.get("models", []), table.get("silence_s", SILENCE_S), table.get("kind", "openai")
    for key in sorted(texts):
        if not isinstance(table.get(key, ""), str):
            raise InvalidValue(f"{where}: {key} is not a string", hint="put it in quotes")
        if table.get(key) == "" and key in FULL:
            raise InvalidValue(f"{where}: {key} is empty", hint="leave the line out")
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise InvalidValue(f"{where}: models is not a list of strings", hint='for example ["small-*"]')
    if not table.get("base_url"):
        raise InvalidValue(f"{where}: base_url is missing", hint='for example "https://api.openai.com/v1"')
    if kind not in KINDS:
        raise InvalidValue(f"{where}: kind is {kind!r}", hint=f"it is one of {', '.join(KINDS)}")
    if type(silence_s) not in (int, float) or not 0 < silence_s <= SILENCE_MOST_S:
        raise InvalidValue(f"{where}: silence_s is {silence_s!r}", hint=f"seconds, up to {SILENCE_MOST_S:g}")
    if len(given := [key for key in KEYS if key in table]) > 1:
        raise InvalidValue(f"{where}: has {given[0]} and {given[1]}", hint="a key comes from one place")
    key = table.get("key", "")
    if variable := table.get("key_env"):
        key = env.get(variable, "")
        if not key:
            raise InvalidValue(f"{where}: the environment has no {variable}", hint=f"export {variable}=YOUR-KEY")
    provider = RemoteProvider(
        name,
        baseurls.checked(table["base_url"], where),
        _key(key, where),
        table.get("model", ""),
        kind,
        key_from=_key_from(home, name, table, where),
        tls=_tls(home, table["ca_file"], where) if "ca_file" in table else None,
        silence_s=float(silence_s),
    )
    return provider, patterns


def _limits(table: dict[str, Any], where: str) -> Limits:
    for name in LIMITS:
        if name in table and (type(table[name]) is not int or not 0 <= table[name] <= LIMIT_MOST):
            raise InvalidValue(f"{where}: {name} is {table[name]!r}", hint="a whole number; 0: no limit")
    return Limits(**{name: table[name] for name in LIMITS if name in table})


def _fallbacks(table: dict[str, Any], where: str) -> list[tuple[str, str]]:
    words = table.get("fallbacks", [])
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise InvalidValue(
            f"{where}: fallbacks is no list of providers", hint='for example ["mirror", "spare:model-2"]'
        )
    return [word.partition(":")[::2] for word in words]


def _key_from(home: Home, name: str, table: dict[str, Any], where: str) -> Key | None:
    title = f"provider {name}"  # who asks for a model is told this, and not where on the host things are
    if "key_file" in table:
        return FileKey(home.root / Path(table["key_file"]).expanduser(), title)
    if "key_command" not in table:
        return None
    words = table["key_command"]
    if isinstance(words, str):
        try:
            words = shlex.split(words)
        except ValueError as error:
            raise InvalidValue(f"{where}: key_command: {error}", hint='for example ["pass", "work"]') from error
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise InvalidValue(f"{where}: key_command is no command", hint='for example ["pass", "work"]')
    return CommandKey(words, title)


def _key(text: str, where: str) -> str:
    """As it can be in a header. It is not shown."""
    if not text.isascii() or not text.isprintable() or text != text.strip():
        raise InvalidValue(f"{where}: its key has what no key has", hint="no line breaks, and no spaces around it")
    return text


def _tls(home: Home, file: str, where: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=home.root / Path(file).expanduser())
    except (OSError, ValueError) as error:  # ssl.SSLError is one of these
        raise InvalidValue(f"{where}: ca_file: {error}", hint="a file of certificates in PEM") from error
