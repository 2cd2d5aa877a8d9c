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
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure import __version__
from perdure.context.leases import Leases
from perdure.errors import InvalidValue
from perdure.host import identity
from perdure.host.paths import Home
from perdure.model import Frozen
from perdure.runs.tenure import Holder, Tenure, Terms

LISTEN = "127.0.0.1:0"
PROTOCOL = 1  # of what servers ask each other
NUMBERS = {"heartbeat_s": "PERDURE_HEARTBEAT_S", "lost_s": "PERDURE_LOST_S"}
TEXTS = {"listen": "PERDURE_LISTEN", "node": "PERDURE_NODE", "snapshots": "PERDURE_SNAPSHOTS"}
SHORTEST_S, LONGEST_S = 0.01, 3600.0


class Sharing(Frozen, frozen=True, kw_only=True):
    host: str
    port: int
    terms: Terms
    node: Home
    snapshots: str = ""


def load(home: Home, environ: Mapping[str, str] | None = None) -> Sharing:
    """Raises InvalidValue that names the wrong line."""
    env = os.environ if environ is None else environ
    place = home.root / "settings.toml"
    try:
        document = tomllib.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        document = {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{place} is not TOML: {error}", hint="correct it, or remove it") from error
    table = document.get("servers", {})
    if not isinstance(table, dict):
        raise InvalidValue(f"{place}: servers is not a table", hint="write a [servers] section")
    if unknown := sorted(set(table) - {*TEXTS, *NUMBERS}):
        known = ", ".join([*TEXTS, *NUMBERS])
        raise InvalidValue(f"{place}: [servers]: unknown setting {unknown[0]!r}", hint=f"known are {known}")
    numbers = {}
    for name, variable in NUMBERS.items():
        where, found = f"{place}: [servers]: {name}", table.get(name, getattr(Terms(), name))
        if text := env.get(variable):
            where, found = variable, _number(text)
        if type(found) not in (int, float) or not SHORTEST_S <= found <= LONGEST_S:
            hint = f"It is a number of seconds from {SHORTEST_S} to {LONGEST_S:g}."
            raise InvalidValue(f"{where} is {found!r}", hint=hint)
        numbers[name] = float(found)
    if numbers["lost_s"] < 2 * numbers["heartbeat_s"]:
        where = f"{place}: [servers]: lost_s" if not env.get(NUMBERS["lost_s"]) else NUMBERS["lost_s"]
        message = f"{where} ({numbers['lost_s']:g}) is less than two heartbeats"
        raise InvalidValue(message, hint="A server is lost when it missed several of them.")
    texts = {name: _text(name, table, env, place) for name in TEXTS}
    where, listen = texts["listen"]
    host, _, port = (listen or LISTEN).rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        hint = "HOST:PORT, for example 10.0.0.5:8750"
        raise InvalidValue(f"{where} is {listen!r}", hint=hint)
    return Sharing(
        host=host.strip("[]"),
        port=int(port),
        terms=Terms(**numbers),
        node=identity.node_home(home, env),
        snapshots=texts["snapshots"][1],
    )


def _text(name: str, table: Mapping[str, Any], env: Mapping[str, str], place: Path) -> tuple[str, str]:
    """Where it was said, and what."""
    if given := env.get(TEXTS[name]):
        return TEXTS[name], given
    where, found = f"{place}: [servers]: {name}", table.get(name, "")
    if not isinstance(found, str):
        raise InvalidValue(f"{where} is not a text", hint=f'{name} = "..."')
    return where, found


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


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
