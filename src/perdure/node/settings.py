"""What a person may set of a node: ``HOME/settings.toml``, its table ``[node]``; the environment comes first.

[node]
frames_mib = 4096      # PERDURE_FRAMES_MIB: what is kept of memory that is in stores beyond this machine
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

from perdure.errors import InvalidValue
from perdure.host.paths import Home

FRAMES_MIB = 4096
FRAMES_MIB_MAX = 1 << 30


@dataclass(frozen=True)
class Settings:
    """``frames_bytes``: the limit of the cache of frames."""

    frames_bytes: int = FRAMES_MIB << 20


def load(home: Home, environ: Mapping[str, str] | None = None) -> Settings:
    """Raises InvalidValue that names the wrong line."""
    env = os.environ if environ is None else environ
    place = home.root / "settings.toml"
    try:
        document = tomllib.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        document = {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{place} is not TOML: {error}", hint="correct it, or remove it") from error
    table = document.get("node", {})
    if not isinstance(table, dict):
        raise InvalidValue(f"{place}: node is not a table", hint="write a [node] section")
    if unknown := sorted(set(table) - {"frames_mib"}):
        raise InvalidValue(f"{place}: [node]: unknown setting {unknown[0]!r}", hint="known is frames_mib")
    if text := env.get("PERDURE_FRAMES_MIB"):
        where, value = "PERDURE_FRAMES_MIB", int(text) if text.isascii() and text.isdecimal() else -1
    else:
        where, value = f"{place}: [node]: frames_mib", table.get("frames_mib", FRAMES_MIB)
    if type(value) is not int or not 0 <= value <= FRAMES_MIB_MAX:
        raise InvalidValue(f"{where} is not a number of MiB", hint=f"for example {FRAMES_MIB}")
    return Settings(frames_bytes=value << 20)
