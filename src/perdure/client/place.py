"""Where the node is that a command talks to: this user's own, or the one that FCRUN_HOST names.

FCRUN_HOST         tcp://HOST:PORT, or unix:///PATH/TO/fcrund.sock; `fcrun --host` comes first
FCRUN_TOKEN        the token for it, or
FCRUN_TOKEN_FILE   a file that holds it
FCRUN_FINGERPRINT  the SHA-256 of its certificate, or
FCRUN_CA           a PEM file with those who may sign it; neither: those that this machine trusts
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from perdure.client.transport import Transport
from perdure.errors import InvalidValue

if TYPE_CHECKING:
    from perdure.client.tls import Tls

SERVICE = "the node (fcrund)"
FORMS = "Write tcp://HOST:PORT or unix:///PATH/TO/fcrund.sock."


def named(environ: Mapping[str, str]) -> str:
    """What FCRUN_HOST says; empty: this user's own node."""
    return environ.get("FCRUN_HOST", "")


def transport(environ: Mapping[str, str]) -> Transport:
    """To the node that FCRUN_HOST names. Raises InvalidValue that names what is wrong."""
    address = named(environ)
    token = _token(environ)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    if address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/"):
            raise InvalidValue(f"FCRUN_HOST is {address!r}", hint=FORMS)
        return Transport(f"unix:{path}", service=SERVICE, hint="Is it running?", headers=headers)
    try:
        parts = urlsplit(address)
        is_good = parts.scheme == "tcp" and bool(parts.hostname) and bool(parts.port) and not parts.path.strip("/")
    except ValueError:
        is_good = False
    if not is_good or "@" in parts.netloc:
        raise InvalidValue(f"FCRUN_HOST is {address!r}", hint=FORMS)
    if not token:
        raise InvalidValue(
            f"{address} wants a token",
            hint="Set FCRUN_TOKEN or FCRUN_TOKEN_FILE: `fcrun token create` makes one.",
        )
    hint = "Is the node running, and does its [node] listen say so?"
    return Transport(f"https://{parts.netloc}", service=SERVICE, hint=hint, headers=headers, tls=_trust(environ))


def _token(environ: Mapping[str, str]) -> str:
    if text := environ.get("FCRUN_TOKEN", ""):
        where = "FCRUN_TOKEN"
    elif file := environ.get("FCRUN_TOKEN_FILE", ""):
        where = f"FCRUN_TOKEN_FILE ({file})"
        try:
            with open(os.path.expanduser(file), encoding="ascii") as lines:  # noqa: PTH111, PTH123 - costs start time
                text = lines.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidValue(f"{where}: {error}") from error
    else:
        return ""
    if not text.isascii() or not text.isprintable() or " " in text or not text:
        raise InvalidValue(f"{where} holds no token")
    return text


def _trust(environ: Mapping[str, str]) -> Tls:
    from perdure.client.tls import Tls

    given = environ.get("FCRUN_FINGERPRINT", "").lower().removeprefix("sha256:").replace(":", "")
    if given and (len(given) != 64 or not set(given) <= set("0123456789abcdef")):
        raise InvalidValue(
            "FCRUN_FINGERPRINT is no SHA-256", hint="It has 64 hex digits; `fcrun system info` on the node shows it."
        )
    return Tls(ca=os.path.expanduser(environ.get("FCRUN_CA", "")), fingerprint=given)  # noqa: PTH111
