"""Which node a home is, whatever its host or its address is called from now on: the file ``node.id``; and which node
a server uses."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure.errors import InvalidValue
from perdure.host import settings
from perdure.host.paths import Home
from perdure.model import NodePlace, new_id


def place(home: Home) -> NodePlace:
    """The node of this home; its id is made by whoever asks first. InvalidValue: the file holds none."""
    path = home.root / "node.id"
    if not path.exists():
        _make(path)
    node_id = path.read_text(encoding="utf-8", errors="replace").strip()
    if not node_id.isascii() or not node_id.isalnum():
        hint = "Remove the file if no run is at this node: it gets another id."
        raise InvalidValue(f"{path} holds no id of a node", hint=hint)
    return NodePlace(id=node_id, host=socket.gethostname(), address=f"unix://{home.socket('fcrund')}")


def node_home(home: Home, environ: Mapping[str, str] | None = None) -> Home:
    """The home whose node a server of this one uses: PERDURE_NODE, or ``node`` in the table [servers] of settings.toml;
    usually the same one. InvalidValue."""
    env = os.environ if environ is None else environ
    where, found = "PERDURE_NODE", env.get("PERDURE_NODE", "")
    if not found:
        where, found = f"{home.root / 'settings.toml'}: [servers]: node", _setting(home)
    if not isinstance(found, str) or (found and not found.startswith("/")):
        hint = "The state folder of the node, on this host: /var/lib/perdure"
        raise InvalidValue(f"{where} is no absolute path: {found!r}", hint=hint)
    return Home(Path(found), home.cache) if found else home


def _setting(home: Home) -> Any:
    """Other mistakes in that file are told by who reads the rest of it."""
    try:
        table = settings.document(home).get("servers", {})
    except InvalidValue:
        return ""
    return table.get("node", "") if isinstance(table, dict) else ""


def _make(path: Path) -> None:
    """Whole, and by one of those who do it at the same moment."""
    descriptor, new = tempfile.mkstemp(dir=path.parent, prefix=".node.id-")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(new_id() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(new, path)
        except FileExistsError:
            pass  # somebody was faster
    finally:
        Path(new).unlink()
