"""A repository of any OCI registry.

The calls are those of the OCI distribution specification 1.1. A blob goes up as a whole (POST, then PUT: "monolithic
upload"), which every registry takes; of a broken upload nothing is left, and the next try sends it again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, urljoin

from perdure.errors import ImageInvalid, NotFound, PerdureError
from perdure.execution.registry.contract import check_tag
from perdure.execution.registry.retry import PATIENCE, Patience, Transient, retried
from perdure.execution.registry.wire import Response, Wire
from perdure.formats.manifest import Descriptor, check_digest

LIST_BYTES_MAX = 4 << 20
PAGES_MAX = 1000
_HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?|\[[0-9a-fA-F:]+\](:[0-9]{1,5})?")
_REPOSITORY = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")


def is_valid(host: str, name: str) -> bool:
    """Whether a registry may be there, and have such a repository."""
    return bool(_HOST.fullmatch(host) and _REPOSITORY.fullmatch(name)) and len(name) <= 255


class Repository:
    """One repository. ``url`` is what errors call it; ``invalid`` what it raises for what is not what was asked for.

    ``verify``, ``login`` and ``account``: see ``Wire``.
    """

    invalid: ClassVar[type[PerdureError]] = ImageInvalid

    def __init__(
        self,
        host: str,
        name: str,
        *,
        url: str,
        tls: bool = True,
        patience: Patience = PATIENCE,
        verify: bool = True,
        login: tuple[str, str] | None = None,
        account: str = "",
    ) -> None:
        self.url = url
        self._wire = Wire(host, self.url, tls=tls, patience=patience, verify=verify, login=login, account=account)
        self._root = f"{self._wire.origin}/v2/"
        self._base = f"{self._root}{name}"
        self._scope = f"repository:{name}:pull"

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

    def document(self, name: str, accept: str, limit_bytes: int) -> tuple[bytes, str]:
        """(bytes, media type) of the manifest or index that a tag or a digest names, not verified. Raises NotFound."""
        wanted = f"sha256:{check_digest(name)}" if name.startswith("sha256:") else check_tag(name)
        status, data, headers = self._small(f"{self._base}/manifests/{wanted}", limit_bytes, {"Accept": accept})
        if status == 404:
            raise NotFound(f"{self.url} has no {'manifest' if name.startswith('sha256:') else 'tag'} {name}")
        return data, headers.get("Content-Type", "").partition(";")[0].strip()

    def mount(self, descriptor: Descriptor, source: str) -> bool:
        """Let the registry take a blob from another repository of its own; False: it does not."""
        scope = f"{self._scope},push repository:{source}:pull"
        query = f"mount={quote(descriptor.digest)}&from={quote(source, safe='')}"

        def asked() -> bool:
            answer = self._wire.ask(
                "POST", f"{self._base}/blobs/uploads/?{query}", scope=scope, accept=(201, 202, 401, 403, 404, 405)
            )
            self._wire.done(answer)
            if answer.status == 202 and answer.headers.get("Location"):  # an upload was begun instead
                self._give_up(urljoin(self._base, answer.headers["Location"]), scope)
            return answer.status == 201

        return retried(self.url, asked, self._wire.patience)

    def check_login(self) -> None:
        """Raises NoRights, Unavailable unless the registry lets us in at all."""

        def asked() -> None:
            self._wire.done(self._wire.ask("GET", self._root, scope="", accept=(200,)))

        retried(self.url, asked, self._wire.patience)

    def tags(self) -> list[str]:
        found: list[str] = []
        url = f"{self._base}/tags/list?n=1000"
        for _ in range(PAGES_MAX):
            status, data, headers = self._small(url, LIST_BYTES_MAX)
            if status == 404:
                return []
            try:
                found += [str(tag) for tag in json.loads(data).get("tags") or []]
            except (ValueError, AttributeError, TypeError) as error:
                raise self.invalid(f"{self.url}: the list of tags does not read: {error!r}") from None
            after = re.match(r"<([^>]+)>", headers.get("Link", ""))
            if not after:
                return sorted(found)
            url = urljoin(url, after[1])
        raise self.invalid(f"{self.url}: the list of tags does not end")

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

    def _small(
        self, url: str, limit_bytes: int, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """(status, body, headers) of what is read whole."""

        def get() -> tuple[int, bytes, Mapping[str, str]]:
            answer = self._wire.ask("GET", url, scope=self._scope, accept=(200, 404), headers=headers)
            data = self._wire.whole(answer, limit_bytes)
            if len(data) > limit_bytes:
                raise self.invalid(f"{self.url}: {url} has more than {limit_bytes} bytes")
            return answer.status, data, answer.headers

        return retried(self.url, get, self._wire.patience)

    def _give_up(self, place: str, scope: str) -> None:
        """Let the registry forget an upload that broke; it does so by itself after some days."""
        try:
            self._wire.done(self._wire.ask("DELETE", place, scope=scope, accept=(204, 404)))
        except (Transient, PerdureError):
            pass  # as the docstring says
