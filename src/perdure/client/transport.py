"""HTTP and WebSocket over a Unix socket or TCP, synchronous (``http1``, wsproto).

Small on purpose: a command line must start at once, so nothing here imports asyncio or a web framework. One
connection per request: the daemons are on this machine.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from perdure.client import http1
from perdure.errors import NoRights, PerdureError, ProtocolError, Unavailable, from_json

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

CHUNK_BYTES = 1 << 20
NDJSON = "application/x-ndjson"

Progress = Callable[[str, int, int], None]
Body = bytes | Iterable[bytes] | None


class _UnixConnection(http1.HTTPConnection):
    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = _unix_socket(self._path, self.timeout)


class _TlsConnection(http1.HTTPConnection):
    def __init__(self, host: str, port: int, timeout_s: float | None, tls: Tls) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._tls = tls

    def connect(self) -> None:
        from perdure.client.tls import connect

        self.sock = connect(self.host, self.port, self.timeout, self._tls)


def _unix_socket(path: str, timeout_s: float | None) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(timeout_s)
        link.connect(path)
    except OSError:
        link.close()
        raise
    return link


class Response:
    """An answer whose body may still be arriving. Close it, or use it in a ``with``."""

    def __init__(self, connection: http1.HTTPConnection, answer: http1.HTTPResponse) -> None:
        self._connection = connection
        self._answer = answer
        self.status = answer.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in answer.getheaders()}

    def read(self) -> bytes:
        """The rest of the body."""
        try:
            return self._answer.read()
        except (OSError, http1.HTTPException) as error:
            raise Unavailable(f"the answer broke off: {error!r}") from error

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives. Raises Unavailable when the connection breaks before the body's end."""
        try:
            while piece := self._answer.read1(CHUNK_BYTES):
                yield piece
        except (OSError, http1.HTTPException) as error:
            raise Unavailable(f"the answer broke off: {error!r}") from error

    def lines(self) -> Iterator[Any]:
        """The JSON values of an NDJSON body, as they arrive (empty lines are keep-alives)."""
        rest = b""
        for piece in self.chunks():
            *complete, rest = (rest + piece).split(b"\n")
            yield from (json.loads(line) for line in complete if line.strip())

    def close(self) -> None:
        # shutdown first: a thread that reads this answer wakes up instead of waiting for ever
        if (link := self._connection.sock) is not None:
            try:
                link.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer was first
        self._answer.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Transport:
    """Requests to one daemon.

    address: ``unix:/path/to.sock``, ``http://host:port`` or, with ``tls``, ``https://host:port``; service and hint:
    what an error names and advises when nothing answers there.
    """

    def __init__(
        self,
        address: str,
        *,
        service: str,
        hint: str = "",
        headers: Mapping[str, str] | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.address = address
        self._tls = tls
        self._service = service
        self._hint = hint
        self._headers = dict(headers or {})

    def open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Body = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Response:
        """Send a request and return once the answer's headers are there.

        timeout_s bounds each wait for bytes (None: for ever). Raises the daemon's own error for a status of 400 and
        above, Unavailable when it cannot be reached.
        """
        connection = self._connection(timeout_s)
        try:
            connection.request(
                method,
                _target(path, query),
                body=body,
                headers={**self._headers, **(headers or {})},
            )
        except (BrokenPipeError, ConnectionResetError):
            pass  # it answered before it read all of the body: the answer says why
        except PerdureError:
            connection.close()
            raise
        except (OSError, http1.HTTPException) as error:
            if type(error).__name__ not in ("SSLEOFError", "SSLZeroReturnError"):  # the same, over TLS
                connection.close()
                raise self._unreachable(error) from error
        try:
            answer = connection.getresponse()
        except (OSError, http1.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error
        response = Response(connection, answer)
        if response.status >= 400:
            with response:
                raise _refusal(response)
        return response

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        json_body: Any = None,
        timeout_s: float | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """One JSON question and its JSON answer (None for an empty one).

        With ``progress`` the daemon streams NDJSON: ``{"progress": [what, done, total]}`` lines, then one
        ``{"ok": answer}`` or ``{"error": ...}``.
        """
        body = None if json_body is None else json.dumps(json_body).encode()
        return self.send(
            method, path, query=query, body=body, content_type="application/json", timeout_s=timeout_s,
            progress=progress,
        )  # fmt: skip

    def send(
        self,
        method: str,
        path: str,
        *,
        body: Body,
        query: Mapping[str, Any] | None = None,
        content_type: str = "application/octet-stream",
        timeout_s: float | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Like ``call`` with a body of raw bytes (an iterable is sent chunked)."""
        headers = {} if body is None else {"content-type": content_type}
        if progress is not None:
            headers["accept"] = NDJSON
        with self.open(method, path, query=query, body=body, headers=headers, timeout_s=timeout_s) as answer:
            if progress is None or not answer.headers.get("content-type", "").startswith(NDJSON):
                text = answer.read()
                return json.loads(text) if text else None
            for line in answer.lines():
                if "progress" in line:
                    progress(*line["progress"])
                elif "error" in line:
                    raise from_json(line["error"])
                else:
                    return line.get("ok")
        raise Unavailable(f"{self._service} ended its answer early", hint=self._hint)

    def websocket(self, path: str, *, query: Mapping[str, Any] | None = None) -> WebSocket:
        """A WebSocket. Raises the daemon's own error when it refuses."""
        from perdure.client.websocket import WebSocket

        try:
            if self.address.startswith("unix:"):
                link: Link = _unix_socket(self.address[5:], None)
            elif self._tls is not None:
                from perdure.client.tls import shared

                link = shared(*self._tcp(), self._tls)
            else:
                link = socket.create_connection(self._tcp())
        except OSError as error:
            raise self._unreachable(error) from error
        return WebSocket(link, _target(path, query), headers=self._headers)

    def _tcp(self) -> tuple[str, int]:
        parts = urlsplit(self.address)
        return parts.hostname or "127.0.0.1", parts.port or 80

    def _connection(self, timeout_s: float | None) -> http1.HTTPConnection:
        if self.address.startswith("unix:"):
            return _UnixConnection(self.address[5:], timeout_s)
        if self._tls is not None:
            return _TlsConnection(*self._tcp(), timeout_s, self._tls)
        return http1.HTTPConnection(*self._tcp(), timeout=timeout_s)

    def _unreachable(self, error: Exception) -> PerdureError:
        if isinstance(error, PermissionError) and self.address.startswith("unix:"):
            return _not_allowed(self.address[5:], self._service)
        return Unavailable(f"{self._service} does not answer at {self.address}: {_why(error)}", hint=self._hint)


def _why(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else repr(error)


def _not_allowed(path: str, service: str) -> NoRights:
    """The socket is there, and is for others."""
    import grp
    import os

    group = ""
    place = path
    while place != "/":
        try:
            facts = os.stat(place)  # noqa: PTH116 - pathlib costs start time
        except PermissionError:
            place = os.path.dirname(place)  # noqa: PTH120
            continue
        except OSError:
            break
        if facts.st_gid != 0 and facts.st_mode & 0o010:  # who is in it gets through
            try:
                group = grp.getgrgid(facts.st_gid).gr_name
            except KeyError:
                group = str(facts.st_gid)
        break
    if group:
        hint = f"Add yourself to group {group}, and log in again: sudo usermod -aG {group} $USER"
    else:
        hint = 'It is for its owner. A group may use it that settings.toml names: [node] group = "fcrun"'
    return NoRights(f"permission denied while connecting to {service} at {path}", hint=hint)


def _target(path: str, query: Mapping[str, Any] | None) -> str:
    given = {key: value for key, value in (query or {}).items() if value is not None and value != ""}
    return f"{path}?{urlencode(given, doseq=True, errors='surrogateescape')}" if given else path


def _refusal(response: Response) -> Exception:
    text = response.read()
    try:
        return from_json(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return ProtocolError(f"answer with status {response.status} and no error in it: {text[:200]!r}")


if TYPE_CHECKING:
    from perdure.client.tls import Tls
    from perdure.client.websocket import Link, WebSocket
