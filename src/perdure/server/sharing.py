"""A server beside others on one database: ``HOME/settings.toml``; the environment comes first.

[servers]
listen = "127.0.0.1:0"  # PERDURE_LISTEN: where others reach it; port 0: any that is free. Not on loopback: with TLS
tls_certificate = ""    # PERDURE_TLS_CERTIFICATE, PERDURE_TLS_KEY: PEM files; without them the server makes its own
tls_key = ""
heartbeat_s = 1.0       # PERDURE_HEARTBEAT_S: how often its lease moves
lost_s = 5.0            # PERDURE_LOST_S: another server whose lease did not move for so long is lost
node = ""               # PERDURE_NODE: the home whose node it uses; nothing: its own
snapshots = ""          # PERDURE_SNAPSHOTS: a store that all nodes reach: a folder, s3://…, oci://…
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path

from perdure import __version__
from perdure.client.clear import is_loopback
from perdure.context.leases import Leases
from perdure.errors import InvalidValue
from perdure.host import certificate, identity
from perdure.host.paths import Home
from perdure.host.settings import Table
from perdure.model import Frozen
from perdure.runs.tenure import Holder, Tenure, Terms

LISTEN = "127.0.0.1:0"
PROTOCOL = 2  # of what servers ask each other
VARIABLES = {
    "listen": "PERDURE_LISTEN",
    "heartbeat_s": "PERDURE_HEARTBEAT_S",
    "lost_s": "PERDURE_LOST_S",
    "node": "PERDURE_NODE",
    "snapshots": "PERDURE_SNAPSHOTS",
    "tls_certificate": "PERDURE_TLS_CERTIFICATE",
    "tls_key": "PERDURE_TLS_KEY",
}
SHORTEST_S, LONGEST_S = 0.01, 3600.0


class Sharing(Frozen, frozen=True, kw_only=True):
    host: str
    port: int
    terms: Terms
    node: Home
    snapshots: str = ""
    tls_certificate: str = ""
    tls_key: str = ""

    @property
    def is_secret(self) -> bool:
        """Whether it is reached with TLS: what goes to other machines never goes in clear."""
        return bool(self.tls_certificate) or not is_loopback(self.host)


def load(home: Home, environ: Mapping[str, str] | None = None) -> Sharing:
    """Raises InvalidValue that names the wrong line."""
    table = Table(home, "servers", VARIABLES, environ)
    heartbeat_s, lost_s = (
        table.number(name, getattr(Terms(), name), SHORTEST_S, LONGEST_S, "a number of seconds")
        for name in ("heartbeat_s", "lost_s")
    )
    if lost_s < 2 * heartbeat_s:
        message = f"{table.where('lost_s')} ({lost_s:g}) is less than two heartbeats"
        raise InvalidValue(message, hint="A server is lost when it missed several of them.")
    listen = table.text("listen") or LISTEN
    host, _, port = listen.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise InvalidValue(f"{table.where('listen')} is {listen!r}", hint="HOST:PORT, for example 10.0.0.5:8750")
    made_out, key = table.text("tls_certificate"), table.text("tls_key")
    if bool(made_out) != bool(key):
        where = table.where("tls_key" if key else "tls_certificate")
        raise InvalidValue(f"{where} is given alone", hint="Give tls_certificate and tls_key, both or neither.")
    return Sharing(
        host=host.strip("[]"),
        port=int(port),
        terms=Terms(heartbeat_s=heartbeat_s, lost_s=lost_s),
        node=identity.node_home(home, environ),
        snapshots=table.text("snapshots"),
        tls_certificate=made_out,
        tls_key=key,
    )


def secured(home: Home, sharing: Sharing) -> tuple[ssl.SSLContext | None, str]:
    """The TLS of the port that other servers use, and its certificate's fingerprint; nothing for a port in clear, which
    is for this machine only. InvalidValue, NotFound (openssl)."""
    if not sharing.is_secret:
        return None, ""
    if sharing.tls_certificate:
        files = Path(sharing.tls_certificate), Path(sharing.tls_key)
    else:
        files = certificate.ensure(home.root / "server.tls", sharing.host, name="perdured", table="servers")
    return certificate.context(*files), certificate.fingerprint(files[0])


def tenure(home: Home, leases: Leases, holder: Holder, terms: Terms, own: Mapping[str, str]) -> Tenure:
    """This server's, whose home has its former id in the file ``server.id``. own: ``url`` and ``token`` to ask it by,
    ``fingerprint`` of its certificate, the id of its ``node``. Whoever reads the database may ask its servers, and
    knows that it is them."""
    path = home.root / "server.id"
    facts = {
        **own,
        "version": __version__,
        "protocol": PROTOCOL,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "home": str(home.root),
    }
    former = path.read_text().strip() if path.exists() else ""
    return Tenure(leases, holder, facts, former=former, remember=lambda server: _remember(path, server), terms=terms)


def _remember(path: Path, server: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(server + "\n")
    new.rename(path)
