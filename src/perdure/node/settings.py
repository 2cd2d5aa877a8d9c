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

from collections.abc import Mapping
from dataclasses import dataclass

from perdure.errors import InvalidValue
from perdure.execution.sandboxes import admission
from perdure.host.paths import Home
from perdure.host.settings import Table, place

FRAMES_MIB = 4096
DISKS_MIB = 16384
VARIABLES = {
    **{
        name: f"PERDURE_{name.upper()}"
        for name in ("frames_mib", "disks_mib", "memory_overcommit", "memory_mib", "machines_max")
    },
    **dict.fromkeys(("group", "listen", "tls_certificate", "tls_key", "connections", "patience_s"), ""),
}
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
    table = Table(home, "node", VARIABLES, environ)
    text = table.text

    def mebibytes(name: str, usual: int) -> int:
        return table.number(name, usual, 0, MIB_MAX, "a number of MiB")

    if bool(text("tls_certificate")) != bool(text("tls_key")):
        message = f"{place(home)}: [node]: tls_certificate and tls_key are given both or neither"
        raise InvalidValue(message, hint="Without them the node makes a certificate of its own.")
    return Settings(
        frames_bytes=mebibytes("frames_mib", FRAMES_MIB) << 20,
        disks_bytes=mebibytes("disks_mib", DISKS_MIB) << 20,
        admission=admission.Limits(
            memory_mib=mebibytes("memory_mib", 0),
            overcommit=table.number("memory_overcommit", admission.MEMORY_OVERCOMMIT, 0.1, OVERCOMMIT_MAX),
            machines_max=table.number("machines_max", admission.MACHINES_MAX, 1, MACHINES_MAX, "a number of machines"),
        ),
        group=text("group"),
        listen=text("listen"),
        tls_certificate=text("tls_certificate"),
        tls_key=text("tls_key"),
        connections=table.number("connections", CONNECTIONS, 1, COUNT_MAX),
        patience_s=table.number("patience_s", PATIENCE_S, 1, COUNT_MAX, "a number of seconds"),
    )
