"""The node's API as its clients meet it, on a real fcrund and a real image library; nothing here needs a machine."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import Conflict, ImageInvalid, InvalidValue, NotFound, Unavailable
from perdure.host.paths import Home
from perdure.model import ExecSpec, SandboxSpec, SandboxState
from perdure.testing.commands import Fcrun
from perdure.testing.tinynodes import TINY, new_home, root_tar, tiny_node


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with a running fcrund and the image ``tiny``."""
    home = new_home(tmp_path_factory.mktemp("node"))
    with tiny_node(home):
        yield home


@pytest.fixture
def client(home: Home) -> Iterator[NodeClient]:
    client = NodeClient(home)
    yield client
    for info in client.list():
        client.remove(info.id, force=True)


def ask(home: Home, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, object]]:
    """Plain HTTP, for what the typed client never sends."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(home.socket("fcrund")))
    try:
        connection.request(method, path, body=body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/nothing", None, 404, "not-found"),
        ("PATCH", "/v1/sandboxes", None, 405, "wrong-method"),
        ("POST", "/v1/sandboxes", b"{", 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b"[]", 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b'{"image": 7}', 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b'{"image": "nope", "command": ["x"]}', 404, "not-found"),
        ("POST", "/v1/sandboxes", b'{"image": "tiny", "command": ["x"], "memory_mib": 1}', 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b'{"image": "tiny", "command": ["x"], "vcpus": 0}', 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b'{"image": "tiny", "command": ["x"], "disk_bytes_per_s": 1}', 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b'{"image": "tiny", "command": ["x"], "disk_ops_per_s": -1}', 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b'{"image": "tiny", "command": ["x"], "name": "a/b"}', 400, "invalid-value"),
        ("POST", "/v1/sandboxes", b'{"image": "tiny"}', 400, "invalid-value"),
        ("GET", "/v1/sandboxes/nope", None, 404, "not-found"),
        ("DELETE", "/v1/sandboxes/nope", None, 404, "not-found"),
        ("POST", "/v1/sandboxes/nope/start", None, 404, "not-found"),
        ("GET", "/v1/sandboxes/nope/logs", None, 404, "not-found"),
        ("GET", "/v1/sandboxes/nope/exec", None, 404, "not-found"),
        ("GET", "/v1/events?since=yesterday&follow=0", None, 400, "invalid-value"),
        ("DELETE", "/v1/images?name=nope", None, 404, "not-found"),
    ],
)
def test_errors(home: Home, method: str, path: str, body: bytes | None, status: int, code: str) -> None:
    answered, error = ask(home, method, path, body)
    assert answered == status
    assert isinstance(error["error"], dict)
    assert error["error"]["code"] == code
    assert error["error"]["message"]


def test_the_message_names_the_field(home: Home) -> None:
    _, error = ask(home, "POST", "/v1/sandboxes", b'{"image": "tiny", "env": {"A": 1}}')
    assert "$.env" in str(error)


def test_create_and_find(client: NodeClient) -> None:
    one = client.create(SandboxSpec(image="tiny", command=["x"], name="one", labels={"a": "b"}))
    assert (one.state, one.name, len(one.id)) == (SandboxState.CREATED, "one", 12)
    assert client.get(one.id) == client.get("one") == client.get(one.id[:10]) == one
    assert client.list(everything=True) == [one]
    assert client.list(everything=False) == []
    with pytest.raises(Conflict, match="the name one is taken"):
        client.create(SandboxSpec(image="tiny", command=["x"], name="one"))


def test_those_with_a_label_are_listed(client: NodeClient) -> None:
    made = {}
    for label in ("b", "b=c", "", None):
        labels = {} if label is None else {"a": label, "other": "x"}
        made[label] = client.create(SandboxSpec(image="tiny", command=["x"], labels=labels))
    assert client.list(label="a=b") == [made["b"]]
    assert client.list(label="a=b=c") == [made["b=c"]]
    assert client.list(label="a=") == [made[""]]
    assert client.list(label="a=nothing") == []
    assert client.list(label="a=b", everything=False) == []


def test_an_ambiguous_prefix_is_a_conflict(client: NodeClient) -> None:
    made = [client.create(TINY).id for _ in range(17)]  # 17 ids cannot all begin with another digit
    first = [one[0] for one in made]
    twice = next(digit for digit in first if first.count(digit) > 1)
    with pytest.raises(Conflict, match="ambiguous"):
        client.get(twice)
    with pytest.raises(NotFound):
        client.get("")


def test_what_a_created_sandbox_cannot_do(client: NodeClient) -> None:
    ref = client.create(TINY).id
    for act in (client.suspend, client.resume):
        with pytest.raises(Conflict, match="is created"):
            act(ref)
    with pytest.raises(Conflict, match="created, not running"):
        client.run(ref, ExecSpec(command=["x"]))
    with pytest.raises(Conflict, match="created, not running"):
        client.kill(ref)
    assert client.stop(ref).state == SandboxState.CREATED
    assert list(client.logs(ref)) == []


def test_files_can_be_put_in_before_the_start(client: NodeClient, home: Home) -> None:
    ref = client.create(TINY).id
    client.put_files(ref, {"/a/b.py": b"x"})
    with pytest.raises(InvalidValue, match="no absolute path"):
        client.put_archive(ref, "relative", b"")
    assert not list(home.run.glob("upload-*"))


def test_remove(client: NodeClient, home: Home) -> None:
    ref = client.create(TINY).id
    client.remove(ref)
    with pytest.raises(NotFound):
        client.get(ref)
    assert not (home.sandboxes / ref).exists()


def test_images(client: NodeClient) -> None:
    (image,) = client.images()
    assert image.name == "tiny:latest"
    ref = client.create(TINY).id
    with pytest.raises(Conflict, match="in use by"):
        client.remove_image("tiny")
    client.remove(ref)
    client.import_image("other", root_tar({"etc/x": b"y"}), changes=["CMD /bin/true", "ENV A=b"])
    assert {image.name for image in client.images()} == {"tiny:latest", "other:latest"}
    client.remove_image("other")
    assert [image.name for image in client.images()] == ["tiny:latest"]


@pytest.mark.parametrize("tar", [b"", b"not a tar" * 100, root_tar({"../outside": b"x"})])
def test_bad_images_are_refused_and_leave_nothing(client: NodeClient, home: Home, tar: bytes) -> None:
    before = sorted(path.name for path in home.images.rglob("*"))
    with pytest.raises(ImageInvalid):
        client.import_image("bad", tar)
    assert sorted(path.name for path in home.images.rglob("*")) == before
    assert not list(home.run.glob("upload-*"))


def test_progress_is_told(home: Home) -> None:
    steps: list[tuple[str, int, int]] = []
    client = NodeClient(home, progress=lambda *step: steps.append(step))
    client.import_image("shown", root_tar({"etc/progress": os.urandom(4096)}))
    client.remove_image("shown")
    assert steps


def test_events_are_kept_and_followed(client: NodeClient) -> None:
    before = time.time()
    found: list[str] = []
    seen = threading.Event()

    def follow() -> None:
        for event in client.events(since=before):
            found.append(event.kind)
            if event.kind == "sandbox.removed":
                seen.set()
                return

    thread = threading.Thread(target=follow)
    thread.start()
    ref = client.create(TINY).id
    client.remove(ref)
    assert seen.wait(10)
    thread.join()
    assert found == ["sandbox.created", "sandbox.removed"]
    kept = [event.kind for event in client.events(follow=False, since=before)]
    assert kept == ["sandbox.created", "sandbox.removed"]


def test_a_killed_node_starts_again_with_its_records(client: NodeClient, home: Home) -> None:
    info = client.create(TINY)
    (home.sandboxes / "halfmade").mkdir()  # what a kill within a creation leaves
    (home.run / "upload-x").mkdir()
    (home.run / "upload-x" / "the archive").touch()
    pid = client.system()["pid"]
    os.kill(pid, signal.SIGKILL)
    ensure_running(home)
    assert client.system()["pid"] != pid
    assert client.get(info.id) == info
    assert not (home.sandboxes / "halfmade").exists()
    assert not list(home.run.glob("upload-*"))


def test_only_one_daemon_serves_a_home(home: Home, client: NodeClient) -> None:
    before = client.system()["pid"]
    threads = [threading.Thread(target=ensure_running, args=(home,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.system()["pid"] == before
    env = {**os.environ, "PERDURE_HOME": str(home.root), "PERDURE_CACHE": str(home.cache)}
    second = subprocess.run([sys.executable, "-m", "perdure.node"], env=env, capture_output=True, text=True)
    assert second.returncode == 1
    assert f"pid {before}" in second.stderr


def test_a_node_that_does_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="fcrund"):
        NodeClient(Home(tmp_path, tmp_path)).list()


def test_fcrun_reports_the_nodes_errors(home: Home) -> None:
    for argv, words in (
        (["run", "--pull", "never", "nope", "x"], "nope"),
        (["rm", "nope"], "no such sandbox: nope"),
        (["inspect", "nope"], "no such sandbox: nope"),
        (["logs", "nope"], "no such sandbox: nope"),
        (["cp", "nope:/etc", "."], "no such sandbox: nope"),
        (["cp", "a", "b"], "one side must be in a sandbox"),
        (["exec", "nope", "ls"], "no such sandbox: nope"),
        (["run", "-it", "tiny", "x"], "not a TTY"),
        (["import", "/nonexistent", "x"], "No such file"),
    ):
        status, out, err = Fcrun(home)(*argv)
        assert (status, out.replace("[]\n", "")) == (125, ""), argv
        assert err.startswith("fcrun: ")
        assert words in err
