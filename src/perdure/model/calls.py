"""What a guest asks of the host, and where that is sent (docs/design/0001-contracts.md, 1)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from perdure.model.values import Frozen

GUEST_HTTP_PORT = 4750  # where guestd listens in the guest (127.0.0.1)
GUEST_VSOCK_PORT = 4751  # where guestd dials the host


class CallsEndpoint(Frozen, frozen=True, kw_only=True):
    """Where a node sends a sandbox's calls, and in whose name."""

    url: str  # http://127.0.0.1:PORT/v1/calls or unix:/path.sock:/v1/calls
    run_id: str
    epoch: int
    token: str


@dataclass(frozen=True)
class Call:
    """One request of a guest to the host (docs/design/0001-contracts.md, 1)."""

    run_id: str
    epoch: int
    lane: str
    ordinal: int
    method: str
    path: str
    headers: Mapping[str, str]  # lower-case names
    body: bytes
    offset: int = 0  # the guest already has this many bytes of the answer's body
    is_first: bool = False  # no machine has heard the answer yet: it was captured while the model thought

    @property
    def key(self) -> str:
        return f"{self.lane}/{self.ordinal}"


class SecretUse(NamedTuple):
    """What a call asks of a host with a secret."""

    secret: str  # its name
    method: str
    path: str  # below the secret's base URL, with its query


@dataclass(frozen=True)
class Answer:
    """The host's answer. ``body`` begins at the call's offset; iterating it ends at the body's end."""

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]
