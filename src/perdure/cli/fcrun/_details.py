"""``logs --details``: labels and variables that ``--log-opt`` names, before each line, as docker has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from perdure.errors import PerdureError

if TYPE_CHECKING:
    from perdure.client.node import NodeClient
    from perdure.model import SandboxInfo


def prefix(client: NodeClient, info: SandboxInfo) -> bytes:
    """``key=value,key=value`` and a space, in the order of the keys. Without any the space alone, as docker has it."""
    from urllib.parse import quote_plus

    found = _chosen(info.spec.log_options, *_known(client, info))
    text = ",".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in sorted(found.items()))
    return f"{text} ".encode()


def _known(client: NodeClient, info: SandboxInfo) -> tuple[dict[str, str], dict[str, str]]:
    """Its labels and its environment, with the image's, where that is still there."""
    labels, env = dict(info.spec.labels), dict(info.spec.env)
    if not info.spec.log_options:
        return labels, env
    try:
        config = client.library.inspect(info.image_digest)["Config"]
    except PerdureError:
        return labels, env
    pairs = (one.partition("=") for one in config.get("Env") or [])
    return (config.get("Labels") or {}) | labels, {name: value for name, _, value in pairs} | env


def _chosen(options: Mapping[str, str], labels: Mapping[str, str], env: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for option, known in (("labels", labels), ("env", env)):
        names = [name for name in options.get(option, "").split(",") if name in known]
        if pattern := options.get(f"{option}-regex"):
            names += [name for name in known if re.search(pattern, name)]
        found |= {name: known[name] for name in names}
    return found
