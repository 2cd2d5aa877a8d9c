"""TLS for the client: whom it trusts, and a connection that one thread may read while another writes.

Imported only where a node is reached over TCP.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import select
import socket
import ssl
import threading
from dataclasses import dataclass

from perdure.errors import InvalidValue, NoRights


@dataclass(frozen=True)
class Tls:
    """Whom to trust: a certificate with this SHA-256 ``fingerprint`` (hex), or one that authorities in the file ``ca``
    have signed for the host's name; neither: those that this machine trusts. ``hint``: what to do where it is nobody of
    those."""

    ca: str = ""
    fingerprint: str = ""
    hint: str = (
        "FCRUN_FINGERPRINT or FCRUN_CA says whom to trust; `fcrun system info` on the node shows its fingerprint."
    )


def connect(host: str, port: int, timeout_s: float | None, trust: Tls) -> ssl.SSLSocket:
    """A connection to whom is trusted. Raises NoRights where it is somebody else, InvalidValue for a ``ca`` that is
    none, OSError."""
    context = _context(trust)
    link = socket.create_connection((host, port), timeout_s)
    try:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        secure = context.wrap_socket(link, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        link.close()
        raise NoRights(
            f"{host}:{port} is not who it should be: {error.verify_message}",
            hint=trust.hint,
        ) from error
    except BaseException:
        link.close()
        raise
    if trust.fingerprint:
        found = hashlib.sha256(secure.getpeercert(binary_form=True) or b"").hexdigest()
        if not hmac.compare_digest(found, trust.fingerprint):
            secure.close()
            raise NoRights(
                f"{host}:{port} is not who it should be: its certificate has the fingerprint {found}",
                hint=f"It may have a new certificate. {trust.hint}",
            )
    return secure


def _context(trust: Tls) -> ssl.SSLContext:
    if trust.fingerprint:  # that very certificate, whatever names and dates it has
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        try:
            context = ssl.create_default_context(cafile=trust.ca or None)
        except (OSError, ValueError) as error:
            raise InvalidValue(f"FCRUN_CA: {trust.ca}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class SharedLink:
    """OpenSSL lets one thread at a time use a connection: a lock sees to that, and nobody holds it while he waits."""

    def __init__(self, secure: ssl.SSLSocket) -> None:
        secure.setblocking(False)
        self._secure = secure
        self._using = threading.Lock()
        self._descriptor = secure.fileno()

    def recv(self, size: int) -> bytes:
        """Bytes, or none at the end."""
        while True:
            with self._using:
                try:
                    return self._secure.recv(size)
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except ssl.SSLWantWriteError:
                    wanted = select.POLLOUT
                except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                    return b""
            self._wait(wanted)

    def sendall(self, data: bytes) -> None:
        """In the order of the calls, as the caller sees to. Raises OSError."""
        rest = memoryview(data)
        while rest:
            with self._using:
                try:
                    rest = rest[self._secure.send(rest) :]
                    continue
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except ssl.SSLWantWriteError:
                    wanted = select.POLLOUT
            self._wait(wanted)

    def _wait(self, wanted: int) -> None:
        poll = select.poll()
        poll.register(self._descriptor, wanted)
        poll.poll()

    def shutdown(self, how: int) -> None:
        """Wake whoever waits."""
        with contextlib.closing(socket.socket(fileno=socket.dup(self._descriptor))) as plain:
            plain.shutdown(how)

    def close(self) -> None:
        with self._using:
            self._secure.close()


def shared(host: str, port: int, trust: Tls) -> SharedLink:
    """A connection as ``connect`` makes it, for several threads."""
    return SharedLink(connect(host, port, None, trust))
