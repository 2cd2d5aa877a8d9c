"""``fcrun build`` with the real buildah: contexts, bases, failures, and that nothing of a build stays."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.host.paths import Home
from perdure.testing.commands import Fcrun

DEADLINE_S = 30.0
PROGRAMS = ("sh", "cat", "sleep", "ls")
BUILDS = shutil.which("buildah") is not None and shutil.which("mksquashfs") is not None and os.geteuid() == 0
pytestmark = pytest.mark.skipif(not BUILDS, reason="needs root, buildah and mksquashfs")


def shell_root() -> bytes:
    """The tar of a root file system with a shell: this machine's, with its libraries."""
    packed = io.BytesIO()
    paths = {str(Path(found).resolve()): f"bin/{name}" for name in PROGRAMS if (found := shutil.which(name))}
    listed = subprocess.run(["ldd", *paths], capture_output=True, text=True, check=True).stdout
    paths |= {str(Path(path).resolve()): path.lstrip("/") for path in re.findall(r"(/\S+) \(0x", listed)}
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, name in paths.items():
            tar.add(path, name)
    return packed.getvalue()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeClient]:
    """With the image ``base``."""
    root = tmp_path_factory.mktemp("node")
    home = Home(root / "home", root / "cache").make()
    ensure_running(home)
    client = NodeClient(home)
    client.import_image("base", shell_root(), changes=["ENV BASE=yes", "WORKDIR /work"])
    yield client
    client.shutdown()


@pytest.fixture
def fcrun(node: NodeClient) -> Iterator[Fcrun]:
    yield Fcrun(node.home)
    assert not list(node.home.run.glob("build-*"))
    assert str(node.home.root) not in Path("/proc/self/mountinfo").read_text()
    for image in node.images():
        if image.name != "base:latest":
            node.remove_image(image.name or image.digest)


def context(folder: Path, **files: str) -> Path:
    """``Dockerfile`` and others; ``_`` in a name stands for a dot."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def content(node: NodeClient, name: str, path: str) -> bytes | None:
    """Of a file in an image."""
    disk = node.library.inspect(name)["Disk"]
    done = subprocess.run(["unsquashfs", "-cat", disk, path], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def config(node: NodeClient, name: str) -> dict[str, object]:
    found: dict[str, object] = node.library.inspect(name)["Config"]
    return found


def test_a_dockerfile_of_stages(node: NodeClient, fcrun: Fcrun, tmp_path: Path) -> None:
    """FROM an image of the node by a name with an argument; RUN, COPY --from, scratch; all that an image is told."""
    place = context(
        tmp_path / "context",
        Dockerfile="""
            ARG NAME=none
            FROM ${NAME}:latest AS made
            ARG WORD=default
            RUN echo "$WORD $BASE in $(ls -d "$PWD")" > /said
            FROM scratch AS last
            COPY --from=made / /
            COPY file /from/context/
            HEALTHCHECK --interval=7s --retries=2 CMD cat /said
            ENTRYPOINT ["/bin/cat"]
            CMD ["/said"]
            EXPOSE 80/tcp 53/udp
            VOLUME /data
            STOPSIGNAL SIGINT
            USER 5:6
            FROM scratch
            COPY nothing /
        """,
        file="content",
    )
    argv = ("--build-arg", "NAME=base", "--build-arg", "WORD=two words", "--target", "last", "--label", "a=b c")
    status, out, said = fcrun("build", "-t", "app:1", "-t", "team/second", *argv, str(place))
    assert status == 0, said
    digest = {image.name: image.digest for image in node.images()}["app:1"]
    assert out.splitlines() == [
        f"Successfully built {digest[7:19]}",
        "Successfully tagged app:1",
        "Successfully tagged team/second:latest",
    ]
    assert "COPY --from=made" in said
    assert content(node, "app:1", "said") == b"two words yes in /work\n"
    assert content(node, "app:1", "from/context/file") == b"content"
    found = config(node, "team/second")
    assert (found["Entrypoint"], found["Cmd"], found["User"]) == (["/bin/cat"], ["/said"], "5:6")
    assert (found["ExposedPorts"], found["Volumes"]) == ({"53/udp": {}, "80/tcp": {}}, {"/data": {}})
    assert (found["StopSignal"], found["Labels"]) == ("SIGINT", {"a": "b c"})
    health = {"Test": ["CMD-SHELL", "cat /said"], "Interval": 7_000_000_000, "Retries": 2}
    assert found["Healthcheck"] == health
    assert "HEALTHCHECK" in fcrun.said("history", "--no-trunc", "app:1")


def test_contexts(node: NodeClient, fcrun: Fcrun, tmp_path: Path) -> None:
    """A folder with a .dockerignore, another Dockerfile inside and outside, on stdin; a tar, packed too."""
    everything = "FROM scratch\nCOPY . /\n"
    place = context(
        tmp_path / "context", Dockerfile=f"FROM scratch\n{everything}", _dockerignore="*.log\n!keep.log\nsecret\n"
    )
    shutil.copy("/bin/true", place / "true")
    (place / "secret").mkdir()
    for name in ("a.log", "keep.log", "secret/key", "Other"):
        (place / name).write_text(everything)
    outside = tmp_path / "Outside"
    outside.write_text(everything + "LABEL from=outside\n")
    assert fcrun.said("build", "-q", "-t", "one", str(place)).strip() == node.images()[0].digest
    assert content(node, "one", "keep.log") is not None
    assert content(node, "one", "a.log") is content(node, "one", "secret/key") is None
    assert fcrun.said("image", "build", "-q", "-t", "two", "-f", str(place / "Other"), str(place))
    assert fcrun.said("build", "-q", "-t", "three", "-f", str(outside), str(place))
    assert config(node, "three")["Labels"] == {"from": "outside"}
    status, _, said = fcrun("build", "-t", "four", "-f", "-", str(place), stdin=outside.read_bytes())
    assert status == 0, said
    assert config(node, "four")["Labels"] == {"from": "outside"}
    packed = subprocess.run(["tar", "-C", str(place), "-cz", "."], capture_output=True, check=True).stdout
    status, _, said = fcrun("build", "-t", "five", "-", stdin=packed)
    assert status == 0, said
    assert content(node, "five", "keep.log") is not None and content(node, "five", "a.log") is None
    status, _, said = fcrun("build", "-t", "six", "-", stdin=b"FROM base\nLABEL from=stdin\n")
    assert status == 0, said
    assert config(node, "six")["Labels"] == {"from": "stdin"}
    (place / "Dockerfile.dockerignore").write_text("Other\n")
    assert fcrun.said("build", "-q", "-t", "seven", str(place))
    assert content(node, "seven", "Other") is None and content(node, "seven", "a.log") is not None


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_a_base_from_a_registry(node: NodeClient, fcrun: Fcrun, tmp_path: Path, registry: str) -> None:
    fcrun.said("save", "-o", str(tmp_path / "base.tar"), "base")
    subprocess.run(
        ["skopeo", "copy", "--insecure-policy", "--dest-tls-verify=false", f"docker-archive:{tmp_path / 'base.tar'}",
         f"docker://{registry}/team/base:v1"],
        check=True, capture_output=True,
    )  # fmt: skip
    place = context(tmp_path / "context", Dockerfile=f"FROM {registry}/team/base:v1\nRUN echo there > /made\n")
    status, _, said = fcrun("build", "-t", "app", str(place))
    assert status == 0, said
    assert content(node, "app", "made") == b"there\n"
    assert f"{registry}/team/base:v1" in {image.name for image in node.images()}  # for the next build
    assert "BASE=yes" in str(config(node, "app")["Env"])
    node.tag_image("base", f"{registry}/team/other:v1")  # here, and not there
    (place / "Dockerfile").write_text(f"FROM {registry}/team/other:v1\n")
    assert fcrun("build", str(place))[0] == 0
    status, _, said = fcrun("build", "--pull", str(place))
    assert status == 125 and "team/other" in said


def test_builds_that_fail(node: NodeClient, fcrun: Fcrun, tmp_path: Path) -> None:
    place = context(tmp_path / "context", Dockerfile="FROM base\nRUN echo before; exit 7\n")
    before = node.images()
    status, out, said = fcrun("build", "-q", "-t", "app", str(place))
    assert (status, out) == (125, "") and "before" in said and "exit status 7" in said  # quiet, but for a failure
    for text, word in (
        ("FROM nothing.invalid/none\n", "nothing.invalid"),
        ("FRUM base\n", "no FROM statement"),
        ("FROM scratch\nCOPY missing /\n", "missing"),
        ("FROM scratch\nCOPY Dockerfile /\n", "no executable program"),
        ("FROM base\nCOPY ../../../../etc/shadow /\n", "shadow"),
    ):
        (place / "Dockerfile").write_text(text)
        status, _, said = fcrun("build", "-t", "app", str(place))
        assert status == 125 and word in said, text
    for argv, word in (
        ((str(tmp_path / "none"),), "not a folder"),
        (("-f", str(tmp_path / "none"), str(place)), "-f"),
        (("-f", str(place / "none"), str(place)), "no Dockerfile"),
        (("-t", "UPPER", str(place)), "no name"),
        (("--platform", "linux/s390x", str(place)), "s390x"),
        (("--label", "=x", str(place)), "--label"),
        (("https://example.invalid/x.git",), "folders and tars"),
        (("-f", "-", "-"), "both"),
        (("-",), "nothing came"),
    ):
        status, _, said = fcrun("build", *argv)
        assert status == 125 and word in said, argv
    assert node.images() == before


def test_a_context_that_plays_tricks_stays_inside(node: NodeClient, fcrun: Fcrun, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(victim)
        tar.addfile(link)
        for name in ("out/pwned", f"../../{victim.name}/pwned", str(victim / "pwned"), "Dockerfile"):
            member = tarfile.TarInfo(name)
            data = b"FROM base\n"
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    fcrun("build", "-t", "app", "-", stdin=packed.getvalue())
    assert list(victim.iterdir()) == []
    (tmp_path / "Dockerfile").write_text("FROM base\n")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        link = tarfile.TarInfo("Dockerfile")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "Dockerfile")
        tar.addfile(link)
    status, _, said = fcrun("build", "-", stdin=packed.getvalue())
    assert status == 125 and "not in the build context" in said


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # another's processes and folders: nothing to wait on


def sleepers(seconds: int) -> list[int]:
    """Processes that a RUN step has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes() == b"sleep\0%d\0" % seconds:
                found.append(int(path.parent.name))
    return found


def test_a_build_ends_with_its_client_or_its_node(node: NodeClient, fcrun: Fcrun, tmp_path: Path) -> None:
    """Neither processes, mounts nor files are left of it."""
    seconds = 86_000 + os.getpid() % 1000
    place = context(tmp_path / "context", Dockerfile=f"FROM base\nRUN sleep {seconds}\n")
    homes = {"PERDURE_HOME": str(node.home.root), "PERDURE_CACHE": str(node.home.cache)}
    argv = [sys.executable, "-m", "perdure.cli.fcrun", "build", str(place)]

    def begun() -> subprocess.Popen[bytes]:
        building = subprocess.Popen(argv, env=os.environ | homes, stderr=subprocess.DEVNULL)
        until(lambda: bool(sleepers(seconds)))
        return building

    building = begun()
    building.send_signal(signal.SIGINT)
    assert building.wait(DEADLINE_S) == 130
    until(lambda: not sleepers(seconds) and not list(node.home.run.glob("build-*")))

    building = begun()
    os.kill(int(node.system()["pid"]), signal.SIGKILL)
    assert building.wait(DEADLINE_S) == 125
    until(lambda: not sleepers(seconds))
    assert list(node.home.run.glob("build-*"))
    ensure_running(node.home)
    assert [image.name for image in node.images()] == ["base:latest"]


def test_without_buildah(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("mksquashfs", "tar", "sh"):
        (programs / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", str(programs))
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    ensure_running(home)
    try:
        status, _, said = Fcrun(home)("build", str(context(tmp_path / "context", Dockerfile="FROM scratch\n")))
        assert status == 125 and "buildah is not installed" in said and "apt-get install buildah" in said
    finally:
        NodeClient(home).shutdown()


def test_the_health_check_is_what_a_sandbox_gets(node: NodeClient, fcrun: Fcrun) -> None:
    """Also where its form is unknown: it is refused before anything runs."""
    status, _, said = fcrun("build", "-t", "app", "-", stdin=b"FROM base\nHEALTHCHECK NONE\nCMD sh\n")
    assert status == 0, said
    assert config(node, "app")["Healthcheck"] == {"Test": ["NONE"]}
    assert json.loads(fcrun.said("inspect", fcrun.said("create", "app").strip()))[0]["state"] == "created"
    for info in node.list():
        node.remove(info.id)
