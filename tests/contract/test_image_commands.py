"""``fcrun save, history, images, inspect`` and ``fcrun image`` against a real node, with skopeo and umoci as peers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.model import SandboxSpec
from perdure.testing.commands import Fcrun
from perdure.testing.tinynodes import new_home, root_tar

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
CONFIG = (
    'ENTRYPOINT ["/bin/true"]', "ENV A=b", "EXPOSE 80", "LABEL kind=test", "WORKDIR /srv", "VOLUME /data",
    "STOPSIGNAL QUIT", "USER 5:6",
)  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeClient]:
    home = new_home(tmp_path_factory.mktemp("node"))
    ensure_running(home)
    client = NodeClient(home)
    yield client
    client.shutdown()


@pytest.fixture
def images(node: NodeClient) -> Iterator[NodeClient]:
    """A node without images; what a test leaves is removed."""
    yield node
    for info in node.list():
        node.remove(info.id, force=True)
    node.library.prune(every=True)
    assert node.images() == []


@pytest.fixture
def fcrun(images: NodeClient) -> Fcrun:
    return Fcrun(images.home)


def saved(fcrun: Fcrun, path: Path, *names: str) -> dict[str, bytes]:
    """The members of the archive."""
    assert fcrun.said("save", "-o", str(path), *names) == ""
    with tarfile.open(path) as tar:
        return {member.name: file.read() for member in tar if (file := tar.extractfile(member)) is not None}


def test_what_is_saved_is_loaded_again_as_it_was(images: NodeClient, fcrun: Fcrun, tmp_path: Path) -> None:
    images.import_image("team/app:v1", root_tar(), changes=CONFIG)
    images.tag_image("team/app:v1", "second")
    images.import_image("other", root_tar({"etc/other": b"x"}))
    before = {image.name: image for image in images.images()}
    files = saved(fcrun, tmp_path / "saved.tar", "team/app:v1", "second", "other")
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    listed = json.loads(files["manifest.json"])
    assert [one["RepoTags"] for one in listed] == [["team/app:v1", "second:latest"], ["other:latest"]]
    names = [one["annotations"]["io.containerd.image.name"] for one in json.loads(files["index.json"])["manifests"]]
    assert names == ["docker.io/team/app:v1", "docker.io/library/second:latest", "docker.io/library/other:latest"]
    for name, data in files.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(data).hexdigest() == name.rpartition("/")[2]
    images.library.prune(every=True)
    assert set(fcrun.said("load", "-i", str(tmp_path / "saved.tar")).splitlines()) == {
        f"Loaded image: {name}" for name in before
    }
    after = {image.name: image for image in images.images()}
    assert {name: (one.digest, one.manifest) for name, one in after.items()} == {
        name: (one.digest, one.manifest) for name, one in before.items()
    }


@needs_skopeo
def test_skopeo_reads_what_is_saved(images: NodeClient, fcrun: Fcrun, tmp_path: Path) -> None:
    """As a docker archive by name, and as the OCI layout that is in it; both have the image's configuration."""
    images.import_image("team/app:v1", root_tar(), changes=CONFIG)
    images.import_image("other", root_tar({"etc/other": b"x"}))
    archive, layout = tmp_path / "saved.tar", tmp_path / "layout"
    saved(fcrun, archive, "team/app:v1", "other")
    layout.mkdir()
    subprocess.run(["tar", "-C", str(layout), "-xf", str(archive)], check=True)
    for source, to in (
        (f"docker-archive:{archive}:team/app:v1", "docker-archive"),
        (f"oci:{layout}:v1", "oci-archive"),
    ):
        found = json.loads(
            subprocess.run(["skopeo", "inspect", "--config", source], check=True, capture_output=True).stdout
        )
        assert found["config"]["Entrypoint"] == ["/bin/true"]
        assert found["config"]["ExposedPorts"] == {"80/tcp": {}}
        copied = tmp_path / f"{to}.tar"
        subprocess.run(
            ["skopeo", "copy", "--insecure-policy", source, f"{to}:{copied}:copied:{to}"],
            check=True,
            capture_output=True,
        )
        images.load_images(iter([copied.read_bytes()]))
    ours = {image.name: image.digest for image in images.images()}
    assert len(ours) == 4 and len(set(ours.values())) == 2  # the same disk and configuration, by every way


def test_save_to_what_cannot_be(images: NodeClient, fcrun: Fcrun, tmp_path: Path) -> None:
    images.import_image("app", root_tar())
    target = tmp_path / "kept.tar"
    target.write_bytes(b"precious")
    for argv, said in (
        (("save", "nothing"), "no image 'nothing'"),
        (("save", "-o", str(target), "app", "nothing"), "no image 'nothing'"),
        (("save", "-o", str(tmp_path / "no/folder/x.tar"), "app"), "--output"),
        (("save",), "required: IMAGE"),
    ):
        status, out, told = fcrun(*argv)
        assert (status, out) == (125, "") and said in told
    assert target.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.tar"]
    leader, follower = pty.openpty()
    homes = {"PERDURE_HOME": str(images.home.root), "PERDURE_CACHE": str(images.home.cache)}
    done = subprocess.run(
        [sys.executable, "-m", "perdure.cli.fcrun", "save", "app"],
        env=os.environ | homes, stdout=follower, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(leader)
    os.close(follower)
    assert done.returncode == 125 and "terminal" in done.stderr
    packed = subprocess.run(
        [sys.executable, "-m", "perdure.cli.fcrun", "save", "app"],
        env=os.environ | homes, capture_output=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert "manifest.json" in tar.getnames()
    assert fcrun.said("image", "save", "-o", "/dev/null", "app") == ""
    assert not Path("/dev/null").is_file()


def test_a_damaged_layer_breaks_the_archive_off(images: NodeClient, fcrun: Fcrun, tmp_path: Path) -> None:
    """Nobody takes half an archive, or a wrong one, for a whole one."""
    images.import_image("app", root_tar())
    layer = max((images.home.images / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    data = layer.read_bytes()
    layer.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    status, _, told = fcrun("save", "-o", str(tmp_path / "saved.tar"), "app")
    assert status == 125 and "broke off" in told
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def layered(images: NodeClient, tmp_path: Path) -> str:
    """An image of three layers, one of which umoci made."""
    if shutil.which("umoci") is None:
        pytest.skip("umoci is not installed")
    layout = tmp_path / "umoci"

    def umoci(*argv: str) -> None:
        subprocess.run(["umoci", *argv], check=True, capture_output=True)

    umoci("init", "--layout", str(layout))
    umoci("new", "--image", f"{layout}:v1")
    (tmp_path / "program").mkdir()
    shutil.copy("/bin/true", tmp_path / "program/true")
    umoci(
        "insert", "--image", f"{layout}:v1", "--history.created_by", "COPY true /bin", str(tmp_path / "program"), "/bin"
    )
    umoci("config", "--image", f"{layout}:v1", "--config.cmd", "/bin/true", "--history.comment", "as it is run")
    umoci("insert", "--image", f"{layout}:v1", "--history.created_by", "x" * 60, str(tmp_path / "program"), "/usr")
    with tarfile.open(tmp_path / "layered.tar", "w") as tar:
        tar.add(layout, ".")
    images.load_images(iter([(tmp_path / "layered.tar").read_bytes()]))
    return images.tag_image(images.images()[0].digest, "layered").digest


def test_history(fcrun: Fcrun, layered: str) -> None:
    lines = fcrun.said("history", "layered").splitlines()
    assert lines[0].split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert len(lines) == 4
    assert lines[1].startswith(layered[7:19]) and "x" * 44 + "…" in lines[1]
    assert lines[2].startswith("<missing>") and lines[2].endswith("as it is run") and " 0B " in lines[2]
    told = fcrun.said("history", "--no-trunc", "--format", "{{.ID}}|{{.CreatedBy}}|{{.Size}}", "layered").splitlines()
    assert told[0].startswith(f"{layered}|{'x' * 60}|")
    assert told[2].split("|")[1] == "COPY true /bin" and not told[2].endswith("|0B")
    assert fcrun.said("image", "history", "-q", "layered").splitlines() == [layered[7:19], "<missing>", "<missing>"]
    first = json.loads(fcrun.said("history", "--format", "json", "layered").splitlines()[0])
    assert first["layer"].startswith("sha256:") and first["size_bytes"] > Path("/bin/true").stat().st_size
    status, _, told_wrong = fcrun("history", "nothing")
    assert status == 125 and "no image 'nothing'" in told_wrong


def test_inspect_an_image(images: NodeClient, fcrun: Fcrun) -> None:
    digest = images.import_image("team/app:v1", root_tar(), changes=CONFIG).digest
    images.tag_image("team/app:v1", "app")
    (found,) = json.loads(fcrun.said("inspect", "team/app:v1"))
    assert found["Id"] == digest and found["RepoTags"] == ["team/app:v1", "app:latest"]
    assert found["Config"] == {
        "Entrypoint": ["/bin/true"],
        "Cmd": None,
        "Env": ["A=b"],
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {"kind": "test"},
        "WorkingDir": "/srv",
        "Volumes": {"/data": {}},
        "StopSignal": "QUIT",
        "User": "5:6",
    }
    assert (found["Os"], len(found["RootFS"]["Layers"])) == ("linux", 1)
    assert found["Descriptor"]["digest"] == images.images()[0].manifest and found["RepoDigests"] == []
    assert fcrun.said("image", "inspect", "-f", "{{json .Config.ExposedPorts}}", digest[7:19]) == '{"80/tcp":{}}\n'
    images.create(SandboxSpec(image="app", name="app"))
    assert "state" in json.loads(fcrun.said("inspect", "app"))[0]  # a sandbox comes first, as in docker
    assert json.loads(fcrun.said("inspect", "--type", "image", "app"))[0]["Id"] == digest
    for argv in (("--type", "container", "team/app:v1"), ("nothing",), ("--type", "image", "nothing")):
        status, out, told = fcrun("inspect", *argv)
        assert (status, json.loads(out)) == (125, []) and "no " in told


def names(fcrun: Fcrun, *argv: str) -> set[str]:
    return set(fcrun.said("images", "--format", "{{.Repository}}:{{.Tag}}", *argv).splitlines())


def test_images_are_filtered_as_docker_does(images: NodeClient, fcrun: Fcrun) -> None:
    images.import_image("team/old:v1", root_tar(), changes=["LABEL a=1"])
    images.import_image("mid", root_tar({"m": b"m"}), changes=["LABEL a=2"])
    images.import_image("localhost:5000/team/new:v2", root_tar({"n": b"n"}))
    everything = {"team/old:v1", "mid:latest", "localhost:5000/team/new:v2"}
    assert names(fcrun) == names(fcrun, "-a") == everything
    assert names(fcrun, "-f", "before=mid") == {"team/old:v1"}
    assert names(fcrun, "-f", "since=mid") == {"localhost:5000/team/new:v2"}
    assert names(fcrun, "-f", "label=a") == {"team/old:v1", "mid:latest"}
    assert names(fcrun, "-f", "label=a=2", "-f", "label=a") == {"mid:latest"}
    assert names(fcrun, "-f", "reference=team/*") == {"team/old:v1"}
    assert names(fcrun, "-f", "reference=mi?", "--filter", "reference=*/*/*:v2") == everything - {"team/old:v1"}
    assert names(fcrun, "team/old") == names(fcrun, "team/*:v1") == {"team/old:v1"}
    assert names(fcrun, "-f", "dangling=true") == names(fcrun, "-f", "until=1h") == set()
    images.import_image("mid", root_tar({"again": b""}))
    assert names(fcrun, "-f", "dangling=true") == {"<none>:<none>"}
    assert names(fcrun, "-f", "dangling=false") == everything
    table = fcrun.said("images", "--digests", "mid").splitlines()
    assert table[0].split()[:3] == ["REPOSITORY", "TAG", "DIGEST"] and "<none>" in table[1]  # in no registry
    assert fcrun.said("image", "ls", "-q", "mid") == images.images()[0].digest[7:19] + "\n"
    for argv, said in (
        (("-f", "colour=red"), "colour=red"),
        (("-f", "before=never"), "no image 'never'"),
        (("-f", "dangling=perhaps"), "true or false"),
        (("-f", "until=soon"), "is no time"),
    ):
        status, _, told = fcrun("images", *argv)
        assert status == 125 and said in told


def test_prune(images: NodeClient, fcrun: Fcrun) -> None:
    """Images without a name go, with -a those without a sandbox; filters spare what they do not match."""
    images.import_image("used", root_tar({"u": b"u"}))
    images.create(SandboxSpec(image="used", command=["/bin/true"]))
    images.import_image("kept", root_tar({"k": b"k"}), changes=["LABEL keep=1"])
    images.import_image("app", root_tar())
    images.import_image("app", root_tar({"again": b"x" * 9999}))
    status, asked, told = fcrun("image", "prune")
    assert status == 125 and "WARNING" in asked and "--force" in told
    assert fcrun.said("image", "prune", "-f", "--filter", "label=x") == "Total reclaimed space: 0B\n"
    lines = fcrun.said("image", "prune", "-f").splitlines()
    assert lines[0] == "Deleted Images:" and lines[1].startswith("deleted: sha256:")
    assert lines[-1].startswith("Total reclaimed space: ") and not lines[-1].endswith(" 0B")
    assert {image.name for image in images.images()} == {"used:latest", "kept:latest", "app:latest"}
    assert fcrun.said("image", "prune", "-af", "--filter", "until=1h") == "Total reclaimed space: 0B\n"
    out = fcrun.said("image", "prune", "--all", "--force", "--filter", "label!=keep").splitlines()
    assert "untagged: app:latest" in out
    assert {image.name for image in images.images()} == {"used:latest", "kept:latest"}
    assert images.library.prune(every=True, until=time.time() - 3600).deleted == []
    for text in ("colour=red", "until=", "label"):
        status, _, told = fcrun("image", "prune", "-f", "--filter", text)
        assert status == 125 and "--filter" in told


def test_the_group_has_dockers_commands(images: NodeClient, fcrun: Fcrun, tmp_path: Path) -> None:
    overview = fcrun.said("image")
    for name in ("build", "history", "import", "inspect", "load", "ls", "prune", "pull", "push", "rm", "save", "tag"):
        assert f"\n  {name} " in overview
    archive = tmp_path / "root.tar"
    archive.write_bytes(root_tar())
    fcrun.said("image", "import", str(archive), "app")
    fcrun.said("image", "tag", "app", "two")
    fcrun.said("image", "save", "-o", str(tmp_path / "saved.tar"), "two")
    assert fcrun.said("image", "rm", "app", "two") == "app\ntwo\n"
    assert fcrun.said("image", "load", "-q", "-i", str(tmp_path / "saved.tar")) == "two:latest\n"
    status, _, told = fcrun("image", "prun")
    assert status == 125 and "Did you mean 'prune'?" in told
    assert fcrun("image", "ls", "--nonsense")[0] == 125
