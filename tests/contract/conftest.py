"""What the tests here share: servers of snapshots and images, empty stores on them, and a registry that lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.testing.images import FakeRegistry, HandMade, root_layer, tar
from perdure.testing.owners import World, owners_node, tidied
from perdure.testing.postgres_fixtures import brittle, log, new_log, postgres, schema, two_logs
from perdure.testing.pulls import Pulls
from perdure.testing.registrynodes import Node, registry_node
from perdure.testing.servers import BUCKET, S3_ENVIRONMENT, registry_server, s3_server

__all__ = ["brittle", "log", "new_log", "postgres", "schema", "two_logs"]

_numbers = iter(range(1 << 30))


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


@pytest.fixture(params=["folder", "s3", "registry"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of an empty store, of each kind."""
    number = next(_numbers)
    if request.param == "folder":
        return str(tmp_path / "a folder of 100%#?")
    if request.param == "s3":
        for name, value in S3_ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3"))
        return f"s3://{BUCKET}/some/place-{number}"
    return f"oci+http://{request.getfixturevalue('registry')}/some/place-{number}"


@pytest.fixture(scope="module")
def pulling_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with (
        pytest.MonkeyPatch.context() as environment,
        registry_node(tmp_path_factory.mktemp("node"), environment) as node,
    ):
        yield node


@pytest.fixture
def pulls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pulls:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return Pulls(tmp_path / "images")


@pytest.fixture
def made() -> HandMade:
    return HandMade()


@pytest.fixture
def fake(made: HandMade) -> Iterator[FakeRegistry]:
    """With the image ``app:v1``."""
    image = made.image([root_layer(), tar({"more": b"2" * 50_000})])
    with FakeRegistry(made, {"v1": image}) as registry:
        yield registry


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with owners_node(tmp_path_factory.mktemp("outside")) as world:
        yield world


@pytest.fixture
def tidy(world: World) -> Iterator[World]:
    """What a test creates goes with it."""
    with tidied(world):
        yield world
