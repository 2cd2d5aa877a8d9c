"""How a registry is reached that only its host is known of: with TLS, but for those on this machine and those for which
it was said that their certificate need not be looked at."""

from __future__ import annotations

import http.client
import ipaddress

from perdure.execution.registry.repository import Repository
from perdure.execution.registry.retry import PATIENCE, Patience


def opened(
    host: str,
    name: str,
    *,
    url: str,
    verify: bool = True,
    login: tuple[str, str] | None = None,
    account: str = "",
    patience: Patience = PATIENCE,
) -> Repository:
    """The repository ``name`` of the registry at ``host``. ``url`` is what errors call it; the rest: see ``Wire``."""
    verify = verify and not is_here(host)
    tls = verify or not _is_plain(host, patience.request_timeout_s)
    return Repository(
        host,
        name,
        url=url,
        tls=tls,
        patience=patience,
        verify=verify,
        login=login,
        account=account,
    )


def is_here(host: str) -> bool:
    """Whether ``HOST[:PORT]`` is this machine, by its name alone: nobody is between it and us."""
    name = host.removeprefix("[").partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _is_plain(host: str, timeout_s: float) -> bool:
    """Whether HTTP without TLS is spoken there. Nothing about us is said to find out.

    A server that speaks TLS refuses the first bytes, or answers with 400 (as Go's does). One that sends us on is no
    registry, but perhaps before one that has TLS.
    """
    connection = http.client.HTTPConnection(host, timeout=timeout_s)
    try:
        connection.request("GET", "/v2/")
        status = connection.getresponse().status
        return status != 400 and not 300 <= status < 400
    except (http.client.HTTPException, ConnectionResetError, BrokenPipeError):
        return False
    except OSError:
        return is_here(host)  # nobody is there, or silent: whoever asks in earnest will tell
    finally:
        connection.close()
