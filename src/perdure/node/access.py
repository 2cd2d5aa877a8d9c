"""Who may do what: one row for each route of the node's API, and nothing that is not in here.

A route without a row is for those who may do everything (and a test names it).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from perdure.node import visit
from perdure.node.tokens import Scope

JSON_BYTES = 4 << 20


class Access(Enum):
    """What a route does, and to what."""

    SHARED = "shared"  # reads what is everybody's: images, the node's version
    LOOK = "look"  # tells what sandboxes and snapshots there are, each caller those it sees
    READ = "read"  # reads what is in one
    USE = "use"  # makes one, changes it, or runs something in it
    OVERSEE = "oversee"  # reads the node as a whole
    RULE = "rule"  # changes what is everybody's, or who may do what


MAY = {
    Scope.ALL: frozenset(Access),
    Scope.OWN: frozenset((Access.SHARED, Access.LOOK, Access.READ, Access.USE)),
    Scope.READ: frozenset((Access.SHARED, Access.LOOK, Access.READ, Access.OVERSEE)),
}

AUDITED = frozenset((Access.READ, Access.USE, Access.RULE))  # the others only when they are refused


@dataclass(frozen=True)
class Rule:
    """``body_bytes``: of a request; None: as much as the disk has room for."""

    access: Access
    body_bytes: int | None = JSON_BYTES


UNKNOWN = Rule(Access.RULE)

_SANDBOX = "/v1/sandboxes/{ref}"
_SNAPSHOT = "/v1/snapshots/{ref}"

RULES = MappingProxyType(
    {
        "GET /v1/system": Rule(Access.SHARED),
        "GET /v1/system/df": Rule(Access.OVERSEE),
        "GET /v1/system/audit": Rule(Access.RULE),
        "POST /v1/system/shutdown": Rule(Access.RULE),
        "GET /v1/events": Rule(Access.LOOK),
        "GET /v1/tokens": Rule(Access.RULE),
        "POST /v1/tokens": Rule(Access.RULE),
        "POST /v1/tokens/{ref}/renew": Rule(Access.RULE),
        "DELETE /v1/tokens/{ref}": Rule(Access.RULE),
        # sandboxes
        "POST /v1/sandboxes": Rule(Access.USE),
        "GET /v1/sandboxes": Rule(Access.LOOK),
        f"GET {_SANDBOX}": Rule(Access.LOOK),
        f"DELETE {_SANDBOX}": Rule(Access.USE),
        f"POST {_SANDBOX}/rename": Rule(Access.USE),
        f"POST {_SANDBOX}/start": Rule(Access.USE),
        f"POST {_SANDBOX}/stop": Rule(Access.USE),
        f"POST {_SANDBOX}/kill": Rule(Access.USE),
        f"POST {_SANDBOX}/suspend": Rule(Access.USE),
        f"POST {_SANDBOX}/checkpoint": Rule(Access.USE),
        f"POST {_SANDBOX}/resume": Rule(Access.USE),
        "POST /v1/forks": Rule(Access.USE),
        f"GET {_SANDBOX}/snapshots": Rule(Access.LOOK),
        f"GET {_SANDBOX}/wait": Rule(Access.LOOK),
        f"GET {_SANDBOX}/logs": Rule(Access.READ),
        f"GET {_SANDBOX}/exec": Rule(Access.USE),
        f"POST {_SANDBOX}/exec": Rule(Access.USE),
        f"GET {_SANDBOX}/attach": Rule(Access.USE),
        f"PUT {_SANDBOX}/archive": Rule(Access.USE, body_bytes=None),
        f"GET {_SANDBOX}/archive": Rule(Access.READ),
        f"GET {_SANDBOX}/stat": Rule(Access.READ),
        "GET /v1/stats": Rule(Access.LOOK),
        f"GET {_SANDBOX}/top": Rule(Access.READ),
        f"GET {_SANDBOX}/changes": Rule(Access.READ),
        f"GET {_SANDBOX}/changes/content": Rule(Access.READ),
        f"GET {_SANDBOX}/export": Rule(Access.READ),
        f"POST {_SANDBOX}/pause": Rule(Access.USE),
        f"POST {_SANDBOX}/unpause": Rule(Access.USE),
        f"POST {_SANDBOX}/commit": Rule(Access.RULE),  # it makes an image, which is everybody's
        # snapshots: what goes to other places is done with the node's credentials, on the node's disk
        "GET /v1/snapshots": Rule(Access.LOOK),
        f"GET {_SNAPSHOT}": Rule(Access.LOOK),
        f"DELETE {_SNAPSHOT}": Rule(Access.USE),
        f"POST {_SNAPSHOT}/verify": Rule(Access.USE),
        f"POST {_SNAPSHOT}/explain": Rule(Access.READ),
        f"POST {_SNAPSHOT}/compact": Rule(Access.USE),
        f"GET {_SNAPSHOT}/export": Rule(Access.READ),
        f"POST {_SNAPSHOT}/push": Rule(Access.RULE),
        f"POST {_SNAPSHOT}/evict": Rule(Access.RULE),
        "POST /v1/store/pull": Rule(Access.RULE),
        "POST /v1/store/import": Rule(Access.RULE, body_bytes=None),
        "GET /v1/store/tree": Rule(Access.LOOK),
        "POST /v1/store/verify": Rule(Access.RULE),
        "POST /v1/store/collect": Rule(Access.RULE),
        # networks, images and templates are everybody's
        "GET /v1/networks": Rule(Access.OVERSEE),
        "POST /v1/networks": Rule(Access.RULE),
        "GET /v1/networks/{ref}": Rule(Access.OVERSEE),
        "DELETE /v1/networks/{ref}": Rule(Access.RULE),
        "POST /v1/networks/{ref}/connect": Rule(Access.RULE),
        "POST /v1/networks/{ref}/disconnect": Rule(Access.RULE),
        # a volume is one sandbox's at a time, and outlives it: whose it is, nobody has written down
        "GET /v1/volumes": Rule(Access.OVERSEE),
        "POST /v1/volumes": Rule(Access.RULE),
        "POST /v1/volumes/prune": Rule(Access.RULE),
        "GET /v1/volumes/{name}": Rule(Access.OVERSEE),
        "DELETE /v1/volumes/{name}": Rule(Access.RULE),
        "GET /v1/images": Rule(Access.SHARED),
        "GET /v1/images/inspect": Rule(Access.SHARED),
        "GET /v1/images/history": Rule(Access.SHARED),
        "GET /v1/images/save": Rule(Access.SHARED),
        "POST /v1/images/pull": Rule(Access.RULE),
        "POST /v1/images/push": Rule(Access.RULE),
        "POST /v1/images/prune": Rule(Access.RULE),
        "POST /v1/images/sweep": Rule(Access.RULE),
        "POST /v1/images/dockerfile": Rule(Access.RULE, body_bytes=None),
        "POST /v1/registries/login": Rule(Access.RULE),
        "DELETE /v1/images": Rule(Access.RULE),
        "POST /v1/images/tag": Rule(Access.RULE),
        "POST /v1/images/import": Rule(Access.RULE, body_bytes=None),
        "POST /v1/images/load": Rule(Access.RULE, body_bytes=None),
        "POST /v1/images/build": Rule(Access.RULE),
        "GET /v1/templates": Rule(Access.OVERSEE),
        "POST /v1/templates": Rule(Access.RULE),
        "POST /v1/templates/{name}/run": Rule(Access.RULE),
        "DELETE /v1/templates/{name}": Rule(Access.RULE),
    }
)


def may(what: Access) -> bool:
    """Whether whoever sent the request that this task answers may do this, whatever they asked for."""
    here = visit.current()
    return here is None or what in MAY[here.caller.scope]


def rule(method: str, route: str) -> Rule:
    """Of a route as the application has it (``/v1/sandboxes/{ref}``)."""
    return RULES.get(f"{'GET' if method == 'HEAD' else method} {route}", UNKNOWN)
