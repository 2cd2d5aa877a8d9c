"""A repository of any OCI registry: ``oci://HOST[:PORT]/REPOSITORY``, ``oci+http://`` where it has no TLS.

The calls are those of the OCI distribution specification 1.1. A blob goes up as a whole (POST, then PUT: "monolithic
upload"), which every registry takes; of a broken upload nothing is left, and the next try sends it again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote, urljoin

from perdure.errors import InvalidValue, NotFound, PerdureError, SnapshotInvalid
from perdure.execution.snapshots.stores.contract import check_tag, checked
from perdure.execution.snapshots.stores.retry import PATIENCE, Patience, Transient, retried
from perdure.execution.snapshots.stores.wire import Response, Wire
from perdure.formats.manifest import LIMIT_BYTES, MANIFEST, Descriptor, check_digest

LIST_BYTES_MAX = 4 << 20
PAGES_MAX = 1000
_HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?|\[[0-9a-fA-F:]+\](:[0-9]{1,5})?")
_REPOSITORY = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")


class RegistryStore:
    """One repository."""

    def __init__(self, host: str, repository: str, *, tls: bool = True, patience: Patience = PATIENCE) -> None:
        if not _HOST.fullmatch(host) or not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
            raise InvalidValue(
                f"{host}/{repository} is not a repository of a registry",
                hint="Write it as oci://HOST/REPOSITORY, the repository in small letters.",
            )
        self.url = f"oci{'' if tls else '+http'}://{host}/{repository}"
        self._wire = Wire(host, self.url, tls=tls, patience=patience)
        self._base = f"{self._wire.origin}/v2/{repository}"
        self._scope = f"repository:{repository}:pull"

    def has(self, descriptor: Descriptor) -> bool:
        return retried(self.url, lambda: self._has(descriptor, self._scope), self._wire.patience)

    def read(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        if length <= 0:
            return b""
        return retried(self.url, lambda: self._read(descriptor, offset, length), self._wire.patience)

    def put(self, descriptor: Descriptor, source: Path) -> None:
        scope = self._scope + ",push"  # asked for from the start: one login, and before the bytes are sent

        def upload() -> None:
            if self._has(descriptor, scope):
                return
            begun = self._wire.ask("POST", f"{self._base}/blobs/uploads/", scope=scope, accept=(202,))
            self._wire.done(begun)
            place = urljoin(self._base, begun.headers.get("Location", ""))
            target = f"{place}{'&' if '?' in place else '?'}digest={quote(descriptor.digest)}"
            headers = {"Content-Type": "application/octet-stream"}
            try:
                answer = self._wire.ask("PUT", target, scope=scope, accept=(201, 404), headers=headers, body=source)
                self._wire.done(answer)
            except Transient:
                self._give_up(place, scope)
                raise
            if answer.status == 404:
                raise Transient(f"{self.url}: the upload of {descriptor.digest} was forgotten half-way")

        retried(self.url, upload, self._wire.patience)

    def tag(self, name: str, manifest: bytes, descriptor: Descriptor) -> None:
        url = f"{self._base}/manifests/{check_tag(name)}"
        headers = {"Content-Type": descriptor.media_type}

        def put() -> None:
            scope = self._scope + ",push"
            answer = self._wire.ask("PUT", url, scope=scope, accept=(201,), headers=headers, body=manifest)
            self._wire.done(answer)

        retried(self.url, put, self._wire.patience)

    def manifest(self, name: str) -> bytes:
        wanted = f"sha256:{check_digest(name)}" if name.startswith("sha256:") else check_tag(name)
        status, data, _ = self._small(f"{self._base}/manifests/{wanted}", LIMIT_BYTES, {"Accept": MANIFEST})
        if status == 404:
            raise NotFound(f"{self.url} has no {'manifest' if name.startswith('sha256:') else 'tag'} {name}")
        return checked(name, data)

    def tags(self) -> list[str]:
        found: list[str] = []
        url = f"{self._base}/tags/list?n=1000"
        for _ in range(PAGES_MAX):
            status, data, link = self._small(url, LIST_BYTES_MAX)
            if status == 404:
                return []
            try:
                found += [str(tag) for tag in json.loads(data).get("tags") or []]
            except (ValueError, AttributeError, TypeError) as error:
                raise SnapshotInvalid(f"{self.url}: the list of tags does not read: {error!r}") from None
            after = re.match(r"<([^>]+)>", link)
            if not after:
                return sorted(found)
            url = urljoin(url, after[1])
        raise SnapshotInvalid(f"{self.url}: the list of tags does not end")

    def close(self) -> None:
        self._wire.close()

    def _blob(self, digest: str) -> str:
        return f"{self._base}/blobs/sha256:{check_digest(digest)}"

    def _has(self, descriptor: Descriptor, scope: str) -> bool:
        answer = self._wire.ask("HEAD", self._blob(descriptor.digest), scope=scope, accept=(200, 404))
        self._wire.done(answer)
        return answer.status == 200 and answer.headers.get("Content-Length") in (None, str(descriptor.size))

    def _read(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        what = f"blob {descriptor.digest} ({descriptor.media_type})"
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        answer = self._wire.ask(
            "GET", self._blob(descriptor.digest), scope=self._scope, accept=(200, 206, 404), headers=headers
        )
        try:
            if answer.status == 404:
                raise NotFound(f"{self.url} has no {what}")
            self._skip(answer, offset)
            data = self._wire.part(answer, length)
        finally:
            self._wire.done(answer)
        if len(data) != length:
            raise Transient(f"{what}: {len(data)} bytes came where {length} were asked for")
        return data

    def _skip(self, answer: Response, offset: int) -> None:
        """Come to the byte at ``offset``: an answer may be a range, or, where ranges are not known, all of it."""
        if answer.status == 206:
            said = answer.headers.get("Content-Range", "")
            if not said.startswith(f"bytes {offset}-"):
                raise Transient(f"the range {said!r} came where one from byte {offset} on was asked for")
            return
        while offset:
            skipped = len(self._wire.part(answer, min(offset, 1 << 20)))
            if not skipped:
                raise Transient(f"an answer ended {offset} bytes before what was asked for")
            offset -= skipped

    def _small(self, url: str, limit_bytes: int, headers: dict[str, str] | None = None) -> tuple[int, bytes, str]:
        """(status, body, Link header) of what is read whole."""

        def get() -> tuple[int, bytes, str]:
            answer = self._wire.ask("GET", url, scope=self._scope, accept=(200, 404), headers=headers)
            data = self._wire.whole(answer, limit_bytes)
            if len(data) > limit_bytes:
                raise SnapshotInvalid(f"{self.url}: {url} has more than {limit_bytes} bytes")
            return answer.status, data, answer.headers.get("Link", "")

        return retried(self.url, get, self._wire.patience)

    def _give_up(self, place: str, scope: str) -> None:
        """Let the registry forget an upload that broke; it does so by itself after some days."""
        try:
            self._wire.done(self._wire.ask("DELETE", place, scope=scope, accept=(204, 404)))
        except (Transient, PerdureError):
            pass  # as the docstring says
