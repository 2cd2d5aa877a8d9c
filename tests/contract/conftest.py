"""The servers that hold snapshots, once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perdure.testing.servers import registry_server, s3_server


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of an S3 server with an empty bucket."""
    with s3_server() as url:
        yield url


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a registry that asks nobody who they are."""
    with registry_server(tmp_path_factory.mktemp("registry")) as host:
        yield host
