"""How many workers of the replay road may live at once: ``HOME/settings.toml``; the environment comes first.

[workers]
max = 16               # PERDURE_WORKERS_MAX: other starts wait for one to end
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping

from perdure.errors import InvalidValue
from perdure.host.paths import Home

USUAL = 16
LARGEST = 10_000


def limit(home: Home, environ: Mapping[str, str] | None = None) -> int:
    """Raises InvalidValue that names the wrong line."""
    env = os.environ if environ is None else environ
    place = home.root / "settings.toml"
    try:
        document = tomllib.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        document = {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{place} is not TOML: {error}", hint="correct it, or remove it") from error
    table = document.get("workers", {})
    if not isinstance(table, dict):
        raise InvalidValue(f"{place}: workers is not a table", hint="write a [workers] section")
    if unknown := sorted(set(table) - {"max"}):
        raise InvalidValue(f"{place}: [workers]: unknown setting {unknown[0]!r}", hint="known is max")
    where, found = f"{place}: [workers]: max", table.get("max", USUAL)
    if text := env.get("PERDURE_WORKERS_MAX"):
        where, found = "PERDURE_WORKERS_MAX", int(text) if text.isascii() and text.isdecimal() else text
    if type(found) is not int or not 0 < found <= LARGEST:
        raise InvalidValue(f"{where} is not a number from 1 to {LARGEST}", hint=f"usual: {USUAL}")
    return found
