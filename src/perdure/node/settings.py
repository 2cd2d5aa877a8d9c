"""What a person may set of a node: ``HOME/settings.toml``, its table ``[node]``; the environment comes first.

[node]
frames_mib = 4096      # PERDURE_FRAMES_MIB: what is kept of memory that is in stores beyond this machine
disks_mib = 16384      # PERDURE_DISKS_MIB: what is kept of suspended sandboxes' disks as they are, to go on at once
memory_overcommit = 4  # PERDURE_MEMORY_OVERCOMMIT: how often the host's memory may be promised to running sandboxes
memory_mib = 0         # PERDURE_MEMORY_MIB: what they may be promised together, where that is not to follow the host
machines_max = 1000    # PERDURE_MACHINES_MAX: how many may run at once
group = ""             # whose members may use run/fcrund.sock; they can then do what root can
listen = ""            # HOST:PORT for other machines: with TLS and a token only
tls_certificate = ""   # PEM files; without them the node makes a certificate of its own
tls_key = ""
connections = 512      # at once, at each door
patience_s = 30        # how long a client may be silent in the middle of a request

A start, resume or fork beyond what memory and machines allow is refused (``execution.sandboxes.admission``).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

from perdure.errors import InvalidValue
from perdure.execution.sandboxes import admission
from perdure.host.paths import Home

FRAMES_MIB = 4096
DISKS_MIB = 16384
KNOWN = (
    "frames_mib", "disks_mib", "memory_overcommit", "memory_mib", "machines_max",
    "group", "listen", "tls_certificate", "tls_key", "connections", "patience_s",
)  # fmt: skip
MIB_MAX = 1 << 30
OVERCOMMIT_MAX = 1000.0
MACHINES_MAX = 1_000_000
CONNECTIONS = 512
COUNT_MAX = 100_000
PATIENCE_S = 30


@dataclass(frozen=True)
class Settings:
    """``frames_bytes``: the limit of the cache of frames; ``disks_bytes``: of the kept disks; ``admission``: of what
    runs at once."""

    frames_bytes: int = FRAMES_MIB << 20
    disks_bytes: int = DISKS_MIB << 20
    admission: admission.Limits = admission.Limits()  # noqa: RUF009 - it never changes
    group: str = ""
    listen: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    connections: int = CONNECTIONS
    patience_s: float = PATIENCE_S


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
    if unknown := sorted(set(table) - set(KNOWN)):
        raise InvalidValue(f"{place}: [node]: unknown setting {unknown[0]!r}", hint=f"known are {', '.join(KNOWN)}")

    def number(name: str, what: str, usual: float, low: float, high: float) -> float:
        """A whole one, unless the usual one is not."""
        variable = f"PERDURE_{name.upper()}"
        if text := env.get(variable):
            where, value = variable, _number(text)
        else:
            where, value = f"{place}: [node]: {name}", table.get(name, usual)
        kinds = (int, float) if isinstance(usual, float) else (int,)
        if value is None or type(value) not in kinds or not low <= value <= high:
            raise InvalidValue(f"{where} is not a number of {what}", hint=f"for example {usual:g}")
        return type(usual)(value)

    def mebibytes(name: str, usual: int) -> int:
        return int(number(name, "MiB", usual, 0, MIB_MAX))

    def text(name: str) -> str:
        value = table.get(name, "")
        if not isinstance(value, str):
            raise InvalidValue(f"{place}: [node]: {name} is not a text", hint=f'{name} = "..."')
        return value

    def count(name: str, usual: int) -> int:
        value = table.get(name, usual)
        if type(value) is not int or not 0 < value <= COUNT_MAX:
            raise InvalidValue(f"{place}: [node]: {name} is not a number from 1 to {COUNT_MAX}", hint=f"usual: {usual}")
        return value

    if bool(text("tls_certificate")) != bool(text("tls_key")):
        raise InvalidValue(f"{place}: [node]: tls_certificate and tls_key are given both or neither")
    return Settings(
        frames_bytes=mebibytes("frames_mib", FRAMES_MIB) << 20,
        disks_bytes=mebibytes("disks_mib", DISKS_MIB) << 20,
        admission=admission.Limits(
            memory_mib=mebibytes("memory_mib", 0),
            overcommit=number("memory_overcommit", "times", admission.MEMORY_OVERCOMMIT, 0.1, OVERCOMMIT_MAX),
            machines_max=int(number("machines_max", "machines", admission.MACHINES_MAX, 1, MACHINES_MAX)),
        ),
        group=text("group"),
        listen=text("listen"),
        tls_certificate=text("tls_certificate"),
        tls_key=text("tls_key"),
        connections=count("connections", CONNECTIONS),
        patience_s=count("patience_s", PATIENCE_S),
    )


def _number(text: str) -> float | None:
    """Of decimal digits, with at most one point in them."""
    whole, _, part = text.partition(".")
    if not text.isascii() or not whole.isdecimal() or (part and not part.isdecimal()):
        return None
    return float(text) if "." in text else int(text)
