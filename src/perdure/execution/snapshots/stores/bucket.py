"""A bucket of any S3 server, in the layout of the folder: ``s3://BUCKET[/PREFIX]``.

Credentials, region and endpoint come from the environment, as every S3 client takes them: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL. A tag is an object of its own below ``tags/``,
so that several machines may push at once without a lock; ``index.json`` is not kept in a bucket for the same reason.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore import exceptions
from obstore.store import S3Store

from perdure.errors import InvalidValue, NoRights, NotFound, PerdureError, SnapshotInvalid
from perdure.execution.registry.contract import check_tag, checked
from perdure.execution.registry.retry import PATIENCE, Patience, Transient, retried
from perdure.formats.manifest import LIMIT_BYTES, Descriptor, check_digest

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")  # Amazon's rules for general purpose buckets
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*")  # its "safe characters"
_REFUSED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
_INSTANCE = "169.254.169.254"  # where a machine of Amazon's is told its keys
_KEYS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to keys that may use this bucket."
Result = TypeVar("Result")


class BucketStore:
    """``bucket/prefix`` of the S3 server that the environment names."""

    def __init__(self, bucket: str, prefix: str = "", patience: Patience = PATIENCE) -> None:
        if not _BUCKET.fullmatch(bucket) or (prefix and not _PREFIX.fullmatch(prefix)):
            raise InvalidValue(
                f"{bucket}/{prefix} is not a place in an S3 server",
                hint="Write it as s3://BUCKET/PREFIX, the bucket in small letters.",
            )
        self.url = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._patience = patience
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            client_options={
                "connect_timeout": timedelta(seconds=patience.request_timeout_s),
                "read_timeout": timedelta(seconds=patience.request_timeout_s),
                "timeout": timedelta(seconds=patience.request_timeout_s * patience.answer_factor),
                "allow_http": endpoint.startswith("http://"),
            },
            # ``retried`` does it, as everywhere
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=0)},
            **options,
        )

    def has(self, descriptor: Descriptor) -> bool:
        try:
            found = self._asked(lambda: obstore.head(self._store, _key(descriptor.digest)))
        except NotFound:
            return False
        return bool(found["size"] == descriptor.size)

    def read(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        what = f"blob {descriptor.digest} ({descriptor.media_type})"

        def part() -> bytes:
            data = bytes(obstore.get_range(self._store, _key(descriptor.digest), start=offset, length=length))
            if len(data) != length:
                raise Transient(f"{what}: {len(data)} bytes came where {length} were asked for")
            return data

        if length <= 0:
            return b""
        try:
            return self._asked(part)
        except NotFound:
            raise NotFound(f"{self.url} has no {what}") from None

    def put(self, descriptor: Descriptor, source: Path) -> None:
        if not self.has(descriptor):
            self._asked(lambda: obstore.put(self._store, _key(descriptor.digest), source))

    def tag(self, name: str, manifest: bytes, descriptor: Descriptor) -> None:
        check_tag(name)
        entry = {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}
        self._asked(lambda: obstore.put(self._store, "oci-layout", _LAYOUT))
        self._asked(lambda: obstore.put(self._store, _key(descriptor.digest), manifest))
        self._asked(lambda: obstore.put(self._store, f"tags/{name}", json.dumps(entry).encode()))

    def manifest(self, name: str) -> bytes:
        digest = name
        try:
            if not name.startswith("sha256:"):
                entry = self._small(f"tags/{check_tag(name)}")
                try:
                    digest = str(json.loads(entry)["digest"])
                except (ValueError, KeyError, TypeError) as error:
                    raise SnapshotInvalid(f"{self.url}: tag {name} does not read: {error!r}") from None
            return checked(digest, self._small(_key(digest)))
        except NotFound:
            raise NotFound(f"{self.url} has no {'manifest' if name.startswith('sha256:') else 'tag'} {name}") from None

    def tags(self) -> list[str]:
        def listed() -> list[str]:
            found = [entry for page in obstore.list(self._store, "tags") for entry in page]
            return sorted(str(entry["path"]).rpartition("/")[2] for entry in found)

        return self._asked(listed)

    def close(self) -> None:
        pass  # its connections end with it

    def _small(self, key: str) -> bytes:
        def whole() -> bytes:
            result = obstore.get(self._store, key)
            if result.meta["size"] > LIMIT_BYTES:
                raise SnapshotInvalid(f"{self.url}: {key} has {result.meta['size']} bytes, more than {LIMIT_BYTES}")
            return bytes(result.bytes())

        return self._asked(whole)

    def _asked(self, action: Callable[[], Result]) -> Result:
        """Raises NotFound for a key (or a bucket) that is not there, else as the contract says."""

        def once() -> Result:
            try:
                return action()
            except (PerdureError, Transient):
                raise
            except (FileNotFoundError, exceptions.NotFoundError) as error:
                raise NotFound(f"{self.url}: {_first_line(error)}") from None
            except (PermissionError, *_REFUSED) as error:
                raise NoRights(
                    f"{self.url} refuses us: {_first_line(error)}",
                    hint=_KEYS,
                ) from error
            except (exceptions.BaseError, OSError) as error:
                if _INSTANCE in str(error):  # no keys are set, and this is no machine of Amazon's that has a role
                    raise NoRights(f"there are no keys for {self.url}", hint=_KEYS) from error
                raise Transient(_first_line(error)) from error

        return retried(self.url, once, self._patience)


def _key(digest: str) -> str:
    return f"blobs/sha256/{check_digest(digest)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
