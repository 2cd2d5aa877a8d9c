"""Every route of the node's API has its place in the table of who may do what."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import NoRights
from perdure.execution.images.library import ImageLibrary
from perdure.execution.sandboxes.ground import Ground
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.snapshots.store import Store
from perdure.host.paths import Home
from perdure.model import CallsEndpoint, Mount, MountKind, PublishedPort, SandboxSpec
from perdure.node import access, wishes
from perdure.node.access import MAY, RULES, UNKNOWN, Access
from perdure.node.api import Api
from perdure.node.tokens import Scope
from perdure.node.wishes import FIELDS


async def routes(tmp_path: Path) -> set[str]:
    """METHOD /path of each, as the daemon serves them."""
    home = Home(tmp_path / "home", tmp_path / "cache").make()

    async def answer(*_: object) -> None:
        raise AssertionError

    sandboxes = Sandboxes(home, Ground(home), ImageLibrary(home.images), Store(home.store), answer)
    app = Api(home, sandboxes, lambda: None).application()
    return {
        f"{route.method} {route.resource.canonical}"
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }


async def test_every_route_has_a_row_and_every_row_a_route(tmp_path: Path) -> None:
    served = await routes(tmp_path)
    assert served - set(RULES) == set(), "say in perdure.node.access who may do this"
    assert set(RULES) - served == set(), "there is no such route any more"
    assert len(served) > 40


async def test_a_route_that_changes_something_is_no_reading_one(tmp_path: Path) -> None:
    reading = {Access.SHARED, Access.LOOK, Access.READ, Access.OVERSEE}
    changing = {
        one for one in await routes(tmp_path) if not one.startswith("GET ") or one.endswith(("/exec", "/attach"))
    }
    assert {one for one in changing if RULES[one].access in reading} == {"POST /v1/snapshots/{ref}/explain"}


def test_a_route_without_a_row_is_for_who_may_do_everything() -> None:
    assert access.rule("POST", "/v1/new") is UNKNOWN
    assert [scope for scope in Scope if UNKNOWN.access in MAY[scope]] == [Scope.ALL]
    assert access.rule("HEAD", "/v1/images") is RULES["GET /v1/images"]


def test_every_field_of_a_spec_has_a_row() -> None:
    assert set(SandboxSpec.__struct_fields__) - set(FIELDS) == set(), "say in perdure.node.wishes who may wish for it"


@pytest.mark.parametrize(
    ("wish", "word"),
    [
        ({"networks": ["team"]}, "networks"),
        ({"ports": [PublishedPort(guest_port=80, host_port=80)]}, "ports"),
        ({"calls": CallsEndpoint(url="unix:/x", run_id="r", epoch=1, token="t")}, "calls"),
        ({"mounts": [Mount(target="/data", source="theirs")]}, "mounts"),
        ({"mounts": [Mount(target="/own"), Mount(target="/tmp/x", kind=MountKind.TMPFS)]}, ""),
        ({"networks": ["none"], "vcpus": 4, "env": {"A": "b"}, "name": "x"}, ""),
        ({"ports": [PublishedPort(guest_port=80), PublishedPort(guest_port=80, host_port=8080)]}, ""),
    ],
)
def test_what_a_small_token_may_wish_for(wish: dict[str, Any], word: str) -> None:
    spec = SandboxSpec(image="x", **wish)
    if not word:
        wishes.check(spec)
        return
    with pytest.raises(NoRights, match=word):
        wishes.check(spec)


def test_bodies_are_read_in_one_place() -> None:
    """Where their length and the client's silence have an end: ``visit.pieces``."""
    reads = re.compile(r"request\.(content\b(?!_)|read\(|json\(|text\(|post\(|multipart\()")
    sources = [path for path in Path(access.__file__).parent.glob("*.py") if reads.search(path.read_text())]
    assert [path.name for path in sources] == ["visit.py"]


def test_scopes() -> None:
    assert MAY[Scope.ALL] == set(Access)
    assert Access.USE not in MAY[Scope.READ] and Access.RULE not in MAY[Scope.READ] | MAY[Scope.OWN]
