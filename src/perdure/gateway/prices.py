"""What turns cost: by the prices of ``HOME/settings.toml``, in US dollars a million tokens::

    [prices."claude-sonnet-*"]     # of models whose names fit; the first that fits counts
    input = 3.0
    output = 15.0
    cached = 0.3                   # of the input what came out of a cache; usual: as the input
    cache_written = 3.75           # what was put into one; usual: as the input

There is no table of our own: prices change, and a wrong one is worse than none. What has no price here has no cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from perdure.errors import InvalidValue
from perdure.gateway.asked import Asked
from perdure.gateway.dialects.dialect import Summary, Usage
from perdure.gateway.sizes import tokens_of
from perdure.host.paths import Home
from perdure.host.settings import document, place

MILLION = 1_000_000
MOST_USD = 1_000_000.0
NAMES = ("input", "output", "cached", "cache_written")


@dataclass(frozen=True)
class Price:
    """US dollars a million tokens."""

    input: float
    output: float
    cached: float
    cache_written: float

    def of(self, usage: Usage) -> float:
        """In dollars."""
        plain = max(0, usage.input_tokens - usage.cached_tokens - usage.cache_written_tokens)
        dollars = (
            plain * self.input
            + usage.cached_tokens * self.cached
            + usage.cache_written_tokens * self.cache_written
            + usage.output_tokens * self.output
        )
        return round(dollars / MILLION, 9)


@dataclass(frozen=True)
class Bill:
    """What one turn has cost. ``cost_usd`` None: nobody knows. ``is_estimated``: its provider told no tokens."""

    usage: Usage
    cost_usd: float | None
    is_estimated: bool = False

    def payload(self) -> dict[str, Any]:
        """As its entry has it."""
        cost = {} if self.cost_usd is None else {"cost_usd": self.cost_usd}
        return {"usage": dict(vars(self.usage)), **cost, **({"estimated": True} if self.is_estimated else {})}


@dataclass(frozen=True)
class Prices:
    """By pattern of a model's name."""

    by_pattern: Mapping[str, Price] = field(default_factory=dict)

    def of(self, *models: str) -> Price | None:
        """The price of a model, which may have several names: of the first that has one."""
        for model in models:
            for pattern, price in self.by_pattern.items():
                if model and fnmatchcase(model, pattern):
                    return price
        return None

    def bill(self, asked: Asked, provider: str, summary: Summary) -> Bill:
        """Of an answer, whole or not, that a provider has given."""
        usage, is_estimated = summary.usage, False
        if asked.dialect.is_known and usage == Usage() and (summary.finished or summary.text):
            usage, is_estimated = _estimate(asked, summary), True
        models = [place.model for place in asked.places if place.provider.name == provider]
        price = self.of(summary.model, *models, asked.model)
        return Bill(usage, None if price is None or usage == Usage() else price.of(usage), is_estimated)


def _estimate(asked: Asked, summary: Summary) -> Usage:
    said = sum(len(call["name"]) for call in summary.tool_calls) + len(summary.text.encode())
    return Usage(input_tokens=tokens_of(len(asked.call.body)), output_tokens=tokens_of(said))


def load(home: Home) -> Prices:
    """Those of ``HOME/settings.toml``. InvalidValue names the wrong line."""
    tables = document(home).get("prices", {})
    if not isinstance(tables, dict):
        raise InvalidValue(f"{place(home)}: prices is not a table", hint='write [prices."claude-*"] sections')
    return Prices({pattern: _price(table, f'{place(home)}: [prices."{pattern}"]') for pattern, table in tables.items()})


def _price(table: Any, where: str) -> Price:
    if not isinstance(table, dict):
        raise InvalidValue(f"{where} is not a table", hint="write input and output under it")
    if unknown := sorted(set(table) - set(NAMES)):
        raise InvalidValue(f"{where}: unknown setting {unknown[0]!r}", hint=f"known are {', '.join(NAMES)}")
    for name in NAMES:
        value = table.get(name, 0.0)
        if type(value) not in (int, float) or not 0 <= value <= MOST_USD:
            raise InvalidValue(f"{where}: {name} is {value!r}", hint="US dollars a million tokens: for example 2.5")
        if name in NAMES[:2] and name not in table:
            raise InvalidValue(f"{where}: {name} is missing", hint="US dollars a million tokens: for example 2.5")
    price = float(table["input"])
    return Price(
        price, float(table["output"]), float(table.get("cached", price)), float(table.get("cache_written", price))
    )
