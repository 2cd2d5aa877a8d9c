"""``fcrun template`` and ``fcrun run --template`` against a real node; nothing here needs a machine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.host.paths import Home
from perdure.model import Recipe, SandboxSpec
from perdure.testing.commands import Fcrun
from perdure.testing.sandboxes import sleeping
from perdure.testing.snapshots import BLOCKS, Bench, blocks_of

WEB, PLAIN = "b0b0b0b0b0b0", "f0f0f0f0f0f0"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home with a running fcrund and the templates ``web`` (with a terminal) and ``plain``, whose image is gone."""
    bench = Bench(tmp_path / "home")
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    base = bench.template(blocks_of([1] * BLOCKS))
    web = SandboxSpec(
        image="tiny:latest", command=["serve", "--port", "8080", "--workers", "1600"], tty=True, stdin=True
    )
    plain = SandboxSpec(image="tiny:latest", entrypoint=["/bin/sleep"], command=["1000"])
    for sandbox_id, recipe in (
        (
            WEB,
            Recipe(name="web", spec=web, ready_log="up", ready_command=["test", "-f", "/a b"], ready_after_s=1.5),
        ),
        (PLAIN, Recipe(name="plain", spec=plain)),
    ):
        snapshot = bench.capture(base, {}, blocks_of(range(4)), sandbox_id=sandbox_id)
        sleeping(
            home.sandboxes,
            sandbox_id,
            f"hidden-{recipe.name}",
            [snapshot],
            spec=recipe.spec,
            image_digest="sha256:" + "1" * 64,
            created=time.time() - 3 * 3600,
            template=base.name,
            template_digest=base.digest,
            recipe=recipe,
        )
    ensure_running(home)
    try:
        yield home
    finally:
        NodeClient(home).shutdown()


@pytest.fixture
def fcrun(home: Home) -> Fcrun:
    return Fcrun(home)


def test_ls(fcrun: Fcrun) -> None:
    status, out, err = fcrun("template", "ls")
    assert (status, err) == (0, "")
    heading, plain, web = [[cell for cell in line.split("   ") if cell] for line in out.splitlines()]
    assert [cell.strip() for cell in heading] == ["NAME", "IMAGE", "COMMAND", "READY", "SIZE", "CREATED", "STATE"]
    assert [cell.strip() for cell in plain[:4]] == ["plain", "tiny:latest", "/bin/sleep 1000", "started"]
    assert [cell.strip() for cell in web[:4]] == [
        "web",
        "tiny:latest",
        "serve --port 8080 --workers 1…",
        "log 'up', cmd test -f '/a b', after 1.5s",
    ]
    assert [cell.strip() for cell in web[5:]] == ["3 hours ago", "stale"]  # there is no image tiny any more
    assert fcrun("template", "ls", "-q") == (0, "plain\nweb\n", "")
    assert "--workers 1600" in fcrun("template", "ls", "--no-trunc")[1]
    values = [json.loads(line) for line in fcrun("template", "ls", "--format", "json")[1].splitlines()]
    assert [(value["name"], value["fresh"]) for value in values] == [("plain", False), ("web", False)]
    assert fcrun("template", "ls", "--format", "{{.Name}}={{.State}}")[1] == "plain=stale\nweb=stale\n"
    assert fcrun("ps", "-aq") == (0, "", "")  # they are nobody's sandboxes


def test_rm(fcrun: Fcrun, home: Home) -> None:
    status, out, err = fcrun("template", "rm", "nope", "web")
    assert (status, out) == (125, "web\n")  # it goes on after one that failed
    assert "no such template: nope" in err
    assert fcrun("template", "ls", "-q")[1] == "plain\n"
    assert not (home.sandboxes / WEB).exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run", "--template", "nope"], ["no such template: nope", "fcrun template ls"]),
        (["run", "--template", "web", "tiny"], ["--template web excludes IMAGE: a template has its own"]),
        (["run", "--template", "web", "tiny", "ls", "-l"], ["excludes IMAGE and COMMAND", "fcrun template build"]),
        (["run", "--template", "web", "-m", "1g", "-e", "A=1"], ["excludes --env, --memory:"]),
        (["run", "--template", "web", "--entrypoint", ""], ["excludes --entrypoint:"]),
        (["run", "--template", "web", "-w", "/", "-u", "me", "-h", "x"], ["--workdir, --user, --hostname"]),
        (["run", "--template", "web", "--cpus", "2", "--disk", "1g"], ["--cpus, --disk"]),
        (["run", "--template", "plain", "-d", "-t"], ["has no terminal: it was built without -t"]),
        (["run", "--template", "plain", "-i"], ["has no stdin: it was built without -i"]),
        (["run", "--template", "plain", "-dit"], ["no terminal and no stdin", "template build -it"]),
        (["run", "--template", "web", "-it"], ["not a TTY"]),
        (["run", "--template", "web", "-l", "=x"], ["--label"]),
        (["template", "build", "none"], ["no image 'none' on this node"]),
        (["template", "build", "--name", "a/b", "tiny"], ["a/b"]),
        (["template", "build", "--timeout", "soon", "tiny"], ["--timeout: 'soon' is no number of seconds"]),
        (["template", "build", "--ready-after", "nan", "tiny"], ["--ready-after: 'nan'"]),
        (["template", "build", "--ready-after", "400", "tiny"], ["before its timeout"]),
        (["template", "build", "--ready-cmd", "test 'x", "tiny"], ["--ready-cmd: No closing quotation"]),
        (["template", "build", "--rm", "tiny"], ["--rm"]),
        (["template", "build"], ["required: IMAGE"]),
        (["template", "bild"], ["Did you mean 'build'?"]),
        (["template", "rm"], ["required: TEMPLATE"]),
    ],
)
def test_errors_say_what_to_do(argv: list[str], words: list[str], fcrun: Fcrun) -> None:
    status, out, err = fcrun(*argv)
    assert (status, out) == (125, "")
    assert err.startswith("fcrun")
    for some in words:
        assert some in err
