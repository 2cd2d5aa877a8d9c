"""A repository of any OCI registry: ``oci://HOST[:PORT]/REPOSITORY``, ``oci+http://`` where it has no TLS.

The calls are those of the OCI distribution specification 1.1. Credentials come from Docker's own file
(``~/.docker/config.json``, or ``$DOCKER_CONFIG/config.json``), where ``docker login`` puts them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urljoin

import urllib3

from perdure.errors import InvalidValue, NoRights, NotFound, SnapshotInvalid, Unavailable
from perdure.execution.snapshots.stores.contract import check_tag, checked
from perdure.execution.snapshots.stores.retry import REQUEST_TIMEOUT_S, Transient, retried
from perdure.formats.manifest import LIMIT_BYTES, MANIFEST, Descriptor, check_digest

_REPOSITORY = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_ANSWER_MAX = 1 << 20
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class RegistryStore:
    """One repository."""

    def __init__(self, host: str, repository: str, *, tls: bool = True) -> None:
        if not host or not _REPOSITORY.fullmatch(repository):
            raise InvalidValue(
                f"{host}/{repository} is not a repository of a registry",
                hint="Write it as oci://HOST/REPOSITORY, the repository in small letters.",
            )
        self.url = f"oci{'' if tls else '+http'}://{host}/{repository}"
        self._host = host
        self._base = f"http{'s' if tls else ''}://{host}/v2/{repository}"
        self._repository = repository
        self._pool = urllib3.PoolManager(
            maxsize=16, timeout=urllib3.Timeout(connect=REQUEST_TIMEOUT_S, read=REQUEST_TIMEOUT_S), retries=False
        )
        self._guard = threading.Lock()
        self._authorization: dict[str, str] = {}  # of each scope
        self._pushes = False

    def has(self, descriptor: Descriptor) -> bool:
        answer = self._call("HEAD", self._blob(descriptor.digest), accept=(200, 404))
        length = answer.headers.get("Content-Length")
        return answer.status == 200 and length in (None, str(descriptor.size))

    def read(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        what = f"blob {descriptor.digest} ({descriptor.media_type})"
        wanted = {"Range": f"bytes={offset}-{offset + length - 1}"}

        def part() -> bytes:
            answer = self._once("GET", self._blob(descriptor.digest), wanted, accept=(200, 206, 404), stream=True)
            try:
                if answer.status == 404:
                    raise NotFound(f"{self.url} has no {what}")
                skip = offset if answer.status == 200 else 0  # it does not know ranges
                while skip:
                    skipped = len(answer.read(min(skip, 1 << 20)))
                    if not skipped:
                        raise Transient(f"{what}: the answer ended before byte {offset}")
                    skip -= skipped
                data: bytes = answer.read(length)
            except urllib3.exceptions.HTTPError as error:
                raise Transient(f"{what}: {error}") from error
            finally:
                answer.drain_conn() if answer.status == 206 else answer.close()
                answer.release_conn()
            if len(data) != length:
                raise Transient(f"{what}: {len(data)} bytes came where {length} were asked for")
            return data

        return retried(self.url, part)

    def put(self, descriptor: Descriptor, source: Path) -> None:
        self._pushes = True
        if self.has(descriptor):
            return

        def upload() -> None:
            begun = self._once("POST", f"{self._base}/blobs/uploads/", {}, accept=(202,))
            location = urljoin(self._base, begun.headers.get("Location", ""))
            target = f"{location}{'&' if '?' in location else '?'}digest={quote(descriptor.digest)}"
            with source.open("rb") as file:
                headers = {"Content-Type": "application/octet-stream", "Content-Length": str(descriptor.size)}
                self._once("PUT", target, headers, accept=(201,), body=file)

        retried(self.url, upload)

    def tag(self, name: str, manifest: bytes, descriptor: Descriptor) -> None:
        self._pushes = True
        headers = {"Content-Type": descriptor.media_type}
        self._call("PUT", f"{self._base}/manifests/{check_tag(name)}", headers, accept=(201,), body=manifest)

    def manifest(self, name: str) -> bytes:
        wanted = name if name.startswith("sha256:") else check_tag(name)
        answer = self._call("GET", f"{self._base}/manifests/{wanted}", {"Accept": MANIFEST}, accept=(200, 404))
        if answer.status == 404:
            raise NotFound(f"{self.url} has no manifest {name}")
        if len(answer.data) > LIMIT_BYTES:
            raise SnapshotInvalid(f"{self.url}: manifest {name} has {len(answer.data)} bytes: too many")
        return checked(name, answer.data)

    def tags(self) -> list[str]:
        found: list[str] = []
        url = f"{self._base}/tags/list?n=1000"
        while url:
            answer = self._call("GET", url, accept=(200, 404))
            if answer.status == 404:
                return []
            try:
                found += json.loads(answer.data).get("tags") or []
            except (ValueError, AttributeError) as error:
                raise SnapshotInvalid(f"{self.url}: the list of tags does not read: {error}") from None
            after = re.match(r"<([^>]+)>", answer.headers.get("Link", ""))
            url = urljoin(self._base, after[1]) if after else ""
        return sorted(found)

    def close(self) -> None:
        self._pool.clear()

    # HTTP

    def _blob(self, digest: str) -> str:
        return f"{self._base}/blobs/sha256:{check_digest(digest)}"

    def _call(
        self, method: str, url: str, headers: dict[str, str] | None = None, *, accept: tuple[int, ...], body: Any = None
    ) -> urllib3.BaseHTTPResponse:
        return retried(self.url, lambda: self._once(method, url, headers or {}, accept=accept, body=body))

    def _once(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        *,
        accept: tuple[int, ...],
        body: bytes | BinaryIO | None = None,
        stream: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        """One request, and another one where the registry wants us to log in first. Raises Transient, NoRights."""
        for attempt in range(2):
            start = body.tell() if hasattr(body, "tell") else 0
            ours = url.startswith(self._base.partition("/v2/")[0])
            login = {"Authorization": self._authorization[self._scope]} if self._scope in self._authorization else {}
            try:
                answer = self._pool.request(
                    method, url, headers=headers | (login if ours else {}), body=body, preload_content=not stream
                )
            except urllib3.exceptions.HTTPError as error:
                raise Transient(f"{method} {url}: {_reason(error)}") from error
            if answer.status == 401 and attempt == 0 and self._log_in(answer):
                answer.release_conn()
                if hasattr(body, "seek"):
                    body.seek(start)
                continue
            break
        if answer.status in accept:
            return answer
        said = f"{method} {url} was answered with {answer.status}: {_words(answer)}"
        if answer.status in _TRANSIENT:
            raise Transient(said)
        if answer.status in (401, 403):
            raise NoRights(f"{self.url} refuses us: {said}", hint=f"Log in first: docker login {self._host}")
        raise Unavailable(f"{self.url}: {said}")

    @property
    def _scope(self) -> str:
        return f"repository:{self._repository}:pull" + (",push" if self._pushes else "")

    def _log_in(self, answer: urllib3.BaseHTTPResponse) -> bool:
        """Get what the challenge asks for. False: there is no way."""
        scheme, _, rest = answer.headers.get("WWW-Authenticate", "").partition(" ")
        known = _credentials(self._host)
        basic = {"Authorization": f"Basic {known}"} if known else {}
        if scheme.lower() == "basic":
            if basic:
                self._authorization[self._scope] = basic["Authorization"]
            return bool(basic)
        if scheme.lower() != "bearer":
            return False
        challenge = dict(_CHALLENGE.findall(rest))
        fields = {"service": challenge.get("service", ""), "scope": self._scope}
        try:
            given = self._pool.request("GET", challenge.get("realm", ""), fields=fields, headers=basic)
            if given.status != 200:
                return False
            token = json.loads(given.data[:_ANSWER_MAX])
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise Transient(f"the token service {challenge.get('realm')} does not answer: {error}") from error
        self._authorization[self._scope] = f"Bearer {token.get('token') or token.get('access_token')}"
        return True


def _credentials(host: str) -> str:
    """Base64 of USER:PASSWORD as ``docker login`` keeps it; empty: none."""
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        entry = json.loads((folder / "config.json").read_bytes()).get("auths", {}).get(host, {})
    except (OSError, ValueError, AttributeError):
        return ""
    if entry.get("username") and entry.get("password"):
        return base64.b64encode(f"{entry['username']}:{entry['password']}".encode()).decode()
    return str(entry.get("auth", ""))


def _words(answer: urllib3.BaseHTTPResponse) -> str:
    try:
        return answer.data[:300].decode(errors="replace").strip() or (answer.reason or "")
    except urllib3.exceptions.HTTPError:
        return answer.reason or ""


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)[:300]
