"""HTTP to one registry: logs in when it is asked to, follows redirects, and tells what may pass from what stays.

One call of ``ask`` is one try; ``retry.retried`` makes several of it. Answers are streamed: whoever asked reads as
much as it wants, and no more is taken from a registry that sends more.
"""

from __future__ import annotations

import base64
import email.utils
import json
import os
import re
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3

from perdure.errors import NoRights, Unavailable
from perdure.execution.registry.retry import Patience, Transient
from perdure.host.logins import IDENTITY, credentials

Response = urllib3.BaseHTTPResponse
CONNECTIONS = 16
REDIRECTS_MAX = 5
DIGESTED_BYTES_PER_S = 10 << 20  # of an uploaded blob by a slow registry
TOKEN_BYTES_MAX = 1 << 20
WORDS_BYTES_MAX = 4 << 10
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}
_TOKEN = re.compile(r"[\x21-\x7e]+")  # wider than RFC 6750's, but nothing that ends a header
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class Wire:
    """To the registry at ``host``; ``name`` is the store's URL, for errors. Thread-safe.

    ``login``: user and password; None: what is kept for ``account`` (the host, where none is given). ``verify``: its
    certificate, by the system's authorities and those in a ``certs.d/HOST`` of docker's.
    """

    def __init__(
        self,
        host: str,
        name: str,
        *,
        tls: bool,
        patience: Patience,
        verify: bool = True,
        login: tuple[str, str] | None = None,
        account: str = "",
    ) -> None:
        self.origin = f"http{'s' if tls else ''}://{host}"
        self.patience = patience
        self._host = host
        self._name = name
        self._login = login
        self._account = account or host
        self._pool = urllib3.PoolManager(
            maxsize=CONNECTIONS,
            ssl_context=_trust(host, verify=verify) if tls else None,
            timeout=urllib3.Timeout(connect=patience.request_timeout_s, read=patience.request_timeout_s),
            retries=False,
        )
        self._logging_in = threading.Lock()
        self._tickets: dict[str, str] = {}  # the Authorization header of each scope

    @property
    def _place(self) -> str:
        """What to log in to."""
        return "" if "/" in self._account else self._account  # Docker Hub is what is meant without a name

    def close(self) -> None:
        self._pool.clear()

    def ask(
        self,
        method: str,
        url: str,
        *,
        scope: str,
        accept: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        body: bytes | Path | None = None,
    ) -> Response:
        """An answer whose status is one of ``accept``, its body not read yet (``whole``, ``part``, ``done``).

        Raises Transient, NoRights, Unavailable.
        """
        for is_second in (False, True):
            ticket = self._tickets.get(scope, "")
            answer = self._followed(method, url, dict(headers or {}), ticket, body)
            if answer.status != 401 or is_second:
                break
            try:
                if not self._log_in(answer, scope, ticket):
                    break
            except BaseException:
                self.done(answer)
                raise
        if answer.status in accept:
            return answer
        said = f"{method} {url} was answered with {answer.status}: {self._words(answer)}"
        if answer.status in _TRANSIENT or "DIGEST_INVALID" in said:  # the bytes changed on their way
            raise Transient(said, _retry_after_s(answer))
        if answer.status in (401, 403):
            raise NoRights(f"{self._name} refuses us: {said}", hint=f"Log in first: fcrun login {self._place}")
        raise Unavailable(f"{self._name}: {said}", hint="Look after the registry: it should not answer so.")

    def whole(self, answer: Response, limit_bytes: int) -> bytes:
        """The body, and the connection is free again. One byte more than the limit tells that it is longer."""
        data = self.part(answer, limit_bytes + 1)
        self.done(answer)
        return data

    def part(self, answer: Response, length: int) -> bytes:
        """The next bytes of the body: as many, or fewer at its end. Raises Transient."""
        limit_s = self.patience.request_timeout_s * self.patience.answer_factor
        deadline = time.monotonic() + limit_s
        held = bytearray()
        try:
            while len(held) < length and (data := answer.read1(min(1 << 16, length - len(held)))):  # what is there
                held += data
                if time.monotonic() > deadline:
                    answer.close()
                    raise Transient(f"an answer took longer than {limit_s:g} s, {len(held)} bytes of it came")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            answer.close()
            raise Transient(f"an answer broke off after {len(held)} bytes: {_reason(error)}") from error
        return bytes(held)

    def done(self, answer: Response) -> None:
        """Keep the connection if the answer was read to its end, else hang up."""
        if answer.length_remaining == 0:
            answer.drain_conn()  # reads nothing; without it the connection is not ready for another request
        else:
            answer.close()
        answer.release_conn()

    def _followed(
        self, method: str, url: str, headers: dict[str, str], ticket: str, body: bytes | Path | None
    ) -> Response:
        for _ in range(REDIRECTS_MAX + 1):
            # Who we are is told to the registry itself only, not to where it sends us for the bytes.
            ours = {"Authorization": ticket} if ticket and _origin(url) == self.origin else {}
            answer = self._once(method, url, headers | ours, body)
            location = answer.headers.get("Location")
            if method not in ("GET", "HEAD") or answer.status not in _REDIRECTS or not location:
                return answer
            self.done(answer)
            url = urljoin(url, location)
            self._refuse_plain(url)
        raise Transient(f"{method} {url}: more than {REDIRECTS_MAX} redirects")

    def _once(self, method: str, url: str, headers: dict[str, str], body: bytes | Path | None) -> Response:
        try:
            if isinstance(body, Path):
                with body.open("rb") as file:
                    size = body.stat().st_size
                    # The answer comes when the registry has looked through all of it, or copied it to where it belongs.
                    timeout = urllib3.Timeout(self.patience.request_timeout_s + size / DIGESTED_BYTES_PER_S)
                    headers = headers | {"Content-Length": str(size)}
                    return self._pool.request(
                        method, url, headers=headers, body=file, preload_content=False, timeout=timeout
                    )
            return self._pool.request(method, url, headers=headers, body=body, preload_content=False)
        except urllib3.exceptions.SSLError as error:
            raise self._distrust(url, error) from error
        except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
            raise Transient(f"{method} {url}: {_reason(error)}") from error

    def _distrust(self, url: str, error: Exception) -> Exception:
        """What no other try would mend, or Transient."""
        said = _reason(error)
        host = urlsplit(url).netloc
        if "CERTIFICATE_VERIFY_FAILED" in said or "certificate" in said:
            return Unavailable(
                f"{self._name}: the certificate of {host} is not to be trusted: {said}",
                hint=f"Put its authority into /etc/docker/certs.d/{host}/ca.crt, or say --tls-verify=false.",
            )
        if "WRONG_VERSION_NUMBER" in said or "record layer failure" in said:
            return Unavailable(
                f"{self._name}: {host} does not speak TLS: {said}",
                hint="Registries without TLS are used on this machine only, or with --tls-verify=false (oci+http:// "
                "of a store).",
            )
        return Transient(f"{url}: {said}")

    def _log_in(self, answer: Response, scope: str, refused: str) -> bool:
        """Get what the challenge asks for. False: there is no way."""
        challenge = answer.headers.get("WWW-Authenticate", "")
        with self._logging_in:
            if self._tickets.get(scope, "") != refused:
                self.done(answer)
                return True  # another thread was faster
            known = self._login or credentials(self._account)
            identity = known[1] if known and known[0] == IDENTITY else ""
            basic = ""
            if known and not identity:
                basic = f"Basic {base64.b64encode(':'.join(known).encode()).decode()}"
            scheme, _, rest = challenge.partition(" ")
            if scheme.lower() == "bearer":
                ticket = self._token(dict(_CHALLENGE.findall(rest)), scope, basic, identity)
            else:
                ticket = basic if scheme.lower() == "basic" and basic != refused else ""
            if not ticket:
                return False
            self._tickets[scope] = ticket
        self.done(answer)
        return True

    def _token(self, challenge: dict[str, str], scope: str, basic: str, identity: str) -> str:
        """A bearer token (distribution's token authentication). Empty: the token service refuses us.

        identity: what its service gave once instead of a password (distribution's oauth2 specification).
        """
        realm = challenge.get("realm", "")
        if not realm.startswith(("https://", "http://")):
            raise Unavailable(f"{self._name} names {realm!r} as its token service", hint="Look after the registry.")
        self._refuse_plain(realm)
        fields = [("service", challenge.get("service", "")), *(("scope", one) for one in scope.split())]
        headers = {"Authorization": basic} if basic else {}
        url, sent = f"{realm}{'&' if '?' in realm else '?'}{urlencode(fields)}", None
        if identity:
            asked = [("grant_type", "refresh_token"), ("client_id", "perdure"), ("refresh_token", identity)]
            fields = [*asked, fields[0], ("scope", scope)]
            url, sent = realm, urlencode(fields)
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
        try:
            method = "POST" if identity else "GET"
            answer = self._pool.request(method, url, headers=headers, body=sent, preload_content=False)
        except urllib3.exceptions.SSLError as error:
            raise self._distrust(realm, error) from error
        except urllib3.exceptions.HTTPError as error:
            raise Transient(f"the token service {realm}: {_reason(error)}") from error
        data = self.whole(answer, TOKEN_BYTES_MAX)
        if answer.status in _TRANSIENT:
            raise Transient(f"the token service {realm} answers {answer.status}", _retry_after_s(answer))
        if answer.status != 200:
            return ""
        try:
            held: Any = json.loads(data)
            token = str(held.get("token") or held["access_token"])
            if not _TOKEN.fullmatch(token):
                raise ValueError("not a token's characters")
            return f"Bearer {token}"
        except (ValueError, KeyError, AttributeError, RecursionError) as error:
            raise Transient(f"the token service {realm} gives no token: {error!r}") from None

    def _refuse_plain(self, url: str) -> None:
        if self.origin.startswith("https:") and not url.startswith("https://"):
            raise Unavailable(
                f"{self._name} sends us from https to {url}", hint="Nothing was sent there. Look after the registry."
            )

    def _words(self, answer: Response) -> str:
        try:
            return self.whole(answer, WORDS_BYTES_MAX)[:300].decode(errors="replace").strip() or (answer.reason or "")
        except Transient:
            return answer.reason or ""


def _trust(host: str, *, verify: bool) -> ssl.SSLContext:
    """What a certificate is checked by."""
    context = ssl.create_default_context()
    if not verify:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # it was asked for by name
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    for folder in (Path("/etc/docker"), Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")):
        for authority in sorted((folder / "certs.d" / host).glob("*.crt")):
            context.load_verify_locations(authority)
    return context


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _retry_after_s(answer: Response) -> float:
    """Seconds, or a date (RFC 9110, 10.2.3)."""
    text = answer.headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)[:300]
