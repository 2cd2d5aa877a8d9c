"""A server beside others on one database: ``HOME/settings.toml``; the environment comes first.

[servers]
listen = "127.0.0.1:0"  # PERDURE_LISTEN: where others reach it; port 0: any that is free
heartbeat_s = 1.0       # PERDURE_HEARTBEAT_S: how often its lease moves
lost_s = 5.0            # PERDURE_LOST_S: another server whose lease did not move for so long is lost
node = ""               # PERDURE_NODE: the home whose node it uses; nothing: its own
snapshots = ""          # PERDURE_SNAPSHOTS: a store that all nodes reach: a folder, s3://…, oci://…
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from perdure import __version__
from perdure.context.leases import Leases
from perdure.errors import InvalidValue
from perdure.host import identity
from perdure.host.paths import Home
from perdure.host.settings import Table
from perdure.model import Frozen
from perdure.runs.tenure import Holder, Tenure, Terms

LISTEN = "127.0.0.1:0"
PROTOCOL = 1  # of what servers ask each other
VARIABLES = {
    "listen": "PERDURE_LISTEN",
    "heartbeat_s": "PERDURE_HEARTBEAT_S",
    "lost_s": "PERDURE_LOST_S",
    "node": "PERDURE_NODE",
    "snapshots": "PERDURE_SNAPSHOTS",
}
SHORTEST_S, LONGEST_S = 0.01, 3600.0


class Sharing(Frozen, frozen=True, kw_only=True):
    host: str
    port: int
    terms: Terms
    node: Home
    snapshots: str = ""


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
    return Sharing(
        host=host.strip("[]"),
        port=int(port),
        terms=Terms(heartbeat_s=heartbeat_s, lost_s=lost_s),
        node=identity.node_home(home, environ),
        snapshots=table.text("snapshots"),
    )


def tenure(home: Home, leases: Leases, holder: Holder, terms: Terms, *, url: str, token: str, node: str) -> Tenure:
    """This server's, whose home has its former id in the file ``server.id``. node: the id of its node."""
    path = home.root / "server.id"
    facts = {
        "url": url,
        "token": token,  # whoever reads this database may ask its servers
        "version": __version__,
        "protocol": PROTOCOL,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "home": str(home.root),
        "node": node,
    }
    former = path.read_text().strip() if path.exists() else ""
    return Tenure(leases, holder, facts, former=former, remember=lambda server: _remember(path, server), terms=terms)


def _remember(path: Path, server: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(server + "\n")
    new.rename(path)
