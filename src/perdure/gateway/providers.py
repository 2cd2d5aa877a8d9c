"""Which providers there are, and where a request for a model goes. Keys live here, on the host, and nowhere else.

``HOME/settings.toml``::

    provider = "work"                  # the default; else the first one, else the offline provider

    [providers.work]
    base_url = "https://models.example.org/v1"
    key_env = "WORK_KEY"               # or key = "...", or neither
    model = "small-1"                  # asked where a request names no model
    models = ["small-*", "large-*"]    # these models go here whatever the default is

The environment comes first: ``OPENAI_API_KEY`` and/or ``OPENAI_BASE_URL`` make the provider ``openai`` (model:
``PERDURE_MODEL``), and ``PERDURE_PROVIDER`` names the default. ``offline`` is always there: a small real model on this
machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol
from urllib.parse import urlsplit

from perdure.errors import InvalidValue, NotFound
from perdure.gateway.offline_process import OfflineProcess
from perdure.host.paths import Home
from perdure.host.settings import document as read
from perdure.host.settings import place

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_MODEL = "gpt-4o-mini"
OFFLINE = "offline"


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible API: ``base_url`` ends before ``/chat/completions``; ``headers`` carry the key."""

    base_url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class Provider(Protocol):
    """Somebody who answers chat completions."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str:
        """The model where a request names none."""
        ...

    async def endpoint(self) -> Endpoint:
        """Where to ask now; called before each attempt. A provider on this machine is started here."""
        ...


@dataclass(frozen=True)
class RemoteProvider:
    """A provider behind a URL."""

    name: str
    base_url: str
    key: str = field(default="", repr=False)
    model: str = ""

    async def endpoint(self) -> Endpoint:
        return Endpoint(self.base_url.rstrip("/"), {"authorization": f"Bearer {self.key}"} if self.key else {})


@dataclass(frozen=True)
class OfflineProvider:
    """SmolLM2 on this machine, in a process of its own."""

    process: OfflineProcess
    name: str = OFFLINE
    model: str = "SmolLM2-135M-Instruct"

    async def endpoint(self) -> Endpoint:
        return Endpoint(await self.process.ensure())


@dataclass(frozen=True)
class Providers:
    """The providers of one home. ``routes``: (pattern of a model's name, provider's name), first match wins."""

    by_name: Mapping[str, Provider]
    default: str
    routes: tuple[tuple[str, str], ...] = ()

    def for_model(self, model: str) -> Provider:
        """The provider that a request for ``model`` ("" = none named) goes to."""
        for pattern, name in self.routes:
            if model and fnmatchcase(model, pattern):
                return self.by_name[name]
        return self.by_name[self.default]


def load(home: Home, environ: Mapping[str, str] | None = None) -> Providers:
    """The providers of ``HOME/settings.toml`` and the environment. ``InvalidValue`` names the wrong line."""
    env = os.environ if environ is None else environ
    settings, document = place(home), read(home)
    found: dict[str, Provider] = {}
    routes: list[tuple[str, str]] = []
    if env.get("OPENAI_API_KEY") or env.get("OPENAI_BASE_URL"):
        url = _url(env.get("OPENAI_BASE_URL") or OPENAI_URL, "OPENAI_BASE_URL")
        found["openai"] = RemoteProvider(
            "openai", url, env.get("OPENAI_API_KEY", ""), env.get("PERDURE_MODEL") or OPENAI_MODEL
        )
    tables = document.get("providers", {})
    if not isinstance(tables, dict):
        raise InvalidValue(f"{settings}: providers is not a table", hint="write [providers.NAME] sections")
    for name, table in tables.items():
        where = f"{settings}: [providers.{name}]"
        if not isinstance(table, dict):
            raise InvalidValue(f"{where} is not a table", hint="write base_url, key_env and models under it")
        if name in found or name == OFFLINE:
            continue  # the environment is nearer to the person who started this
        found[name], patterns = _provider(name, table, where, env)
        routes += [(pattern, name) for pattern in patterns]
    found[OFFLINE] = OfflineProvider(OfflineProcess(home))
    default = env.get("PERDURE_PROVIDER") or document.get("provider") or next(iter(found))
    if default not in found:
        raise NotFound(f"there is no provider {default!r}", hint=f"{settings} and the environment have {list(found)}")
    return Providers(found, default, tuple(routes))


def _provider(name: str, table: dict[str, Any], where: str, env: Mapping[str, str]) -> tuple[Provider, list[str]]:
    known = {"base_url", "key", "key_env", "model", "models"}
    if unknown := sorted(set(table) - known):
        raise InvalidValue(f"{where}: unknown setting {unknown[0]!r}", hint=f"known are {sorted(known)}")
    patterns = table.get("models", [])
    for key in known - {"models"}:
        if not isinstance(table.get(key, ""), str):
            raise InvalidValue(f"{where}: {key} is not a string", hint="put it in quotes")
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise InvalidValue(f"{where}: models is not a list of strings", hint='for example ["small-*"]')
    if not table.get("base_url"):
        raise InvalidValue(f"{where}: base_url is missing", hint='for example "https://api.openai.com/v1"')
    key = table.get("key", "")
    if variable := table.get("key_env"):
        key = env.get(variable, "")
        if not key:
            raise InvalidValue(f"{where}: the environment has no {variable}", hint=f"export {variable}=YOUR-KEY")
    return RemoteProvider(name, _url(table["base_url"], where), key, table.get("model", "")), patterns


def _url(text: str, where: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidValue(f"{where}: {text!r} is not a URL", hint="it begins with http:// or https://")
    return text
