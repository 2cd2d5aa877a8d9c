"""Pulls and pushes that a full disk, a kill or the registry ends: what is left, and what is said."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import NoRights, NoSpace, Unavailable
from perdure.execution.images import pushing
from perdure.execution.registry.reaching import opened
from perdure.execution.registry.retry import Patience
from perdure.formats.references import parse
from perdure.host.paths import Home
from perdure.host.progress import silent
from perdure.testing import dying, smalldisks
from perdure.testing.commands import Fcrun
from perdure.testing.images import Answer, FakeRegistry, HandMade, Request, root_layer
from perdure.testing.pulls import Pulls, layers, replace

STEPS_MAX = 200


@pytest.mark.parametrize("pages", [20, 300, 1400, 2000])
def test_a_full_disk(made: HandMade, tmp_path: Path, pages: int) -> None:
    """While the blobs come, or while the disk is made of them: nothing is left, and with room the pull works."""
    image = made.image([root_layer({"noise": os.urandom(4 << 20)})], "")
    with smalldisks.mounted(tmp_path / "small", 32) as small, FakeRegistry(made, {"v1": image}) as fake:
        pulls = Pulls(small / "images")
        smalldisks.fill(small, pages)
        pulls.refused(f"{fake.host}/app:v1", NoSpace, "")
        assert pulls.library.incoming_files() == []
        left = {path.name for path in (small / "images").iterdir()} if (small / "images").exists() else set()
        assert left <= {"lock", "blobs", "incoming", "index.json"}
        smalldisks.clear(small)
        assert pulls.pull(f"{fake.host}/app:v1") == image["digest"]


def test_a_kill_at_every_step_leaves_the_image_or_none(pulls: Pulls, fake: FakeRegistry, tmp_path: Path) -> None:
    """And the next pull works, after which nothing is there but the image."""
    name, digest = f"{fake.host}/app:v1", fake.tags["v1"]["digest"]
    for at in range(1, STEPS_MAX):
        status = dying.run(tmp_path, "pull an image", name, at, done=False)
        if status == 0:
            break
        assert status == dying.KILLED
        assert [image.name for image in pulls.library.list()] in ([], [name])
        assert pulls.pull(name) == digest
        assert pulls.library.parts(name).digest == digest
        pulls.library.sweep(every=True)
        assert pulls.library.incoming_files() == []
        pulls.library.remove(name)
        assert [path.name for path in (pulls.folder / "blobs").iterdir()] == []
        assert {path.name for path in pulls.folder.iterdir()} == {"lock", "index.json", "blobs", "incoming"}
    assert 15 < at < STEPS_MAX - 1


def test_two_pulls_of_one_image_fetch_it_once(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda _: pulls.pull(f"{fake.host}/app:v1"), range(4)))
    assert set(digests) == {fake.tags["v1"]["digest"]}
    for layer in layers(made, fake):
        assert len([one for one in fake.asked if layer in one.path]) == 1
    assert len(pulls.library.list()) == 1


def test_a_push_that_the_registry_refuses(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    name = f"{fake.host}/app:v1"
    pulls.pull(name)
    reference = parse(name)

    def pushed() -> None:
        repository = opened(reference.host, reference.path, url=reference.place, patience=pulls.patience)
        with closing(repository):
            pushing.push(pulls.library, repository, reference, progress=silent)

    for status, kind in ((401, NoRights), (403, NoRights), (413, Unavailable), (429, Unavailable), (507, Unavailable)):
        replace(fake, "manifests/v1", (status, {}, b"no"))
        with pytest.raises(kind, match="refuses us" if kind is NoRights else str(status)):
            pushed()
    replace(fake, "/blobs/", (500, {}, b""))
    with pytest.raises(Unavailable, match="500"):
        pushed()


def test_a_registry_that_takes_its_time_over_a_large_blob(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    """It answers an upload when it has looked through all of it: nothing is sent twice meanwhile."""
    fake.tags["v1"] = made.image([root_layer({"noise": os.urandom(20 << 20)})], "")
    name = f"{fake.host}/app:v1"
    pulls.pull(name)
    reference, puts = parse(name), []
    slow = threading.Event()

    def answered(request: Request) -> Answer | None:
        if request.method == "HEAD":
            return 404, {}, b""
        if request.method == "POST":
            return 202, {"Location": f"/v2/app/blobs/uploads/{len(fake.asked)}"}, b""
        if request.method == "PUT" and "/uploads/" in request.path:
            puts.append(len(request.body))
            slow.wait(1.0 if len(request.body) > 1 << 20 else 0.0)
        return (201, {}, b"") if request.method == "PUT" else None

    fake.answer = answered
    patience = Patience(tries=2, request_timeout_s=0.3, pause=pulls.pauses.append)
    repository = opened(reference.host, reference.path, url=reference.place, patience=patience)
    with closing(repository):
        pushing.push(pulls.library, repository, reference, progress=silent)
    assert len(puts) == 2 and max(puts) > 20 << 20 and pulls.pauses == []


def test_the_command_fails_as_all_do(made: HandMade, fake: FakeRegistry, tmp_path: Path) -> None:
    """With 125, one error on standard error, and nothing on standard output that looks like success."""
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    ensure_running(home)
    fcrun = Fcrun(home)
    try:
        for argv, word in (
            (("pull", "127.0.0.1:1/app"), "refused"),
            (("pull", "-q", f"{fake.host}/app:none"), "has no tag none"),
            (("pull", "a/../b"), "is no name"),
            (("pull", "UPPER"), "is no name"),
            (("push", "UPPER"), "is no name"),
            (("pull", "--tls-verify=perhaps", "a"), "neither true nor false"),
            (("pull", "--platform", "plan9/mips", f"{fake.host}/app:v1"), "this node runs"),
            (("pull", "--platform", "//", f"{fake.host}/app:v1"), "this node runs"),
            (("pull",), "required"),
            (("create", "--pull", "sometimes", "a"), "invalid choice"),
        ):
            status, out, said = fcrun(*argv)
            assert status == 125 and word in said and "Digest" not in out, (argv, said)
        assert NodeClient(home).images() == []
    finally:
        NodeClient(home).shutdown()
