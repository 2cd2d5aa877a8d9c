"""Stores beyond this machine, by their URL: a folder, a bucket, a repository of a registry (``contract``)."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from perdure.errors import InvalidValue
from perdure.execution.registry.contract import RemoteStore
from perdure.execution.registry.retry import PATIENCE, Patience

FORMS = "/PATH, s3://BUCKET/PREFIX, oci://HOST/REPOSITORY or oci+http://HOST/REPOSITORY"


def open_store(url: str, patience: Patience = PATIENCE) -> RemoteStore:
    """The store at ``url``; nothing is asked of it yet.

    Its libraries are imported here, where a store of its kind is wanted, and nowhere else.
    Raises InvalidValue with the forms that are understood.
    """
    parts = urlsplit(url)
    path = parts.path.strip("/")
    if url.startswith("/") or parts.scheme == "file":
        from perdure.execution.snapshots.stores.folder import FolderStore

        return FolderStore(Path(url if url.startswith("/") else unquote(parts.path)))
    if parts.scheme == "s3":
        from perdure.execution.snapshots.stores.bucket import BucketStore

        return BucketStore(parts.netloc, path, patience)
    if parts.scheme in ("oci", "oci+http"):
        from perdure.execution.snapshots.stores.registry import RegistryStore

        return RegistryStore(parts.netloc, path, tls=parts.scheme == "oci", patience=patience)
    raise InvalidValue(f"{url!r} is not a store", hint=f"Write it as {FORMS}.")
