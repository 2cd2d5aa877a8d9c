"""Stores beyond this machine, by their URL: a folder, a bucket, a repository of a registry (``contract``)."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from perdure.errors import InvalidValue
from perdure.execution.snapshots.stores.contract import RemoteStore

FORMS = "/PATH, s3://BUCKET/PREFIX, oci://HOST/REPOSITORY or oci+http://HOST/REPOSITORY"


def open_store(url: str) -> RemoteStore:
    """Nothing is asked of it yet. Raises InvalidValue with the forms that are understood."""
    parts = urlsplit(url)
    path = parts.path.strip("/")
    if url.startswith("/") or parts.scheme == "file":
        from perdure.execution.snapshots.stores.folder import FolderStore

        return FolderStore(Path(url if url.startswith("/") else parts.path))
    if parts.scheme == "s3":
        from perdure.execution.snapshots.stores.bucket import BucketStore

        return BucketStore(parts.netloc, path)
    if parts.scheme in ("oci", "oci+http"):
        from perdure.execution.snapshots.stores.registry import RegistryStore

        return RegistryStore(parts.netloc, path, tls=parts.scheme == "oci")
    raise InvalidValue(f"{url!r} is not a store", hint=f"Write it as {FORMS}.")
