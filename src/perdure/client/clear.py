"""What may be sent in clear: only what does not leave this machine. Tokens, and what agents say, go with it."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from perdure.errors import InvalidValue


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, whatever way it is looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def check(url: str) -> None:
    """Raises InvalidValue for a URL without TLS that leads to another machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        hint = "Servers listen with TLS for other machines: https://HOST:PORT, see docs/several-servers.md."
        raise InvalidValue(f"{url} is in clear, and leads to another machine: no token is sent there", hint=hint)
