"""What a person may set of a node: ``HOME/settings.toml``, its table ``[node]``; the environment comes first.

[node]
frames_mib = 4096      # PERDURE_FRAMES_MIB: what is kept of memory that is in stores beyond this machine
disks_mib = 16384      # PERDURE_DISKS_MIB: what is kept of suspended sandboxes' disks as they are, to go on at once
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

from perdure.errors import InvalidValue
from perdure.host.paths import Home

FRAMES_MIB = 4096
DISKS_MIB = 16384
MIB_MAX = 1 << 30


@dataclass(frozen=True)
class Settings:
    """``frames_bytes``: the limit of the cache of frames; ``disks_bytes``: of the kept disks."""

    frames_bytes: int = FRAMES_MIB << 20
    disks_bytes: int = DISKS_MIB << 20


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
    if unknown := sorted(set(table) - {"frames_mib", "disks_mib"}):
        raise InvalidValue(f"{place}: [node]: unknown setting {unknown[0]!r}", hint="known are frames_mib, disks_mib")

    def mebibytes(name: str, usual: int) -> int:
        variable = f"PERDURE_{name.upper()}"
        if text := env.get(variable):
            where, value = variable, int(text) if text.isascii() and text.isdecimal() else -1
        else:
            where, value = f"{place}: [node]: {name}", table.get(name, usual)
        if type(value) is not int or not 0 <= value <= MIB_MAX:
            raise InvalidValue(f"{where} is not a number of MiB", hint=f"for example {usual}")
        return value << 20

    return Settings(frames_bytes=mebibytes("frames_mib", FRAMES_MIB), disks_bytes=mebibytes("disks_mib", DISKS_MIB))
