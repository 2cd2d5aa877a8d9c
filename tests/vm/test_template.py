"""Templates of workloads on the real Firecracker: started once, and every sandbox goes on from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perdure.client.node import NodeClient
from perdure.errors import CommandNotFound, Conflict, InvalidValue, NotFound
from perdure.host.paths import Home
from perdure.model import Fork, Recipe, SandboxSpec, SandboxState

pytestmark = pytest.mark.vm
IMAGE = "perdure-test"
# Slow to start, as real servers are: what it read at its start is random, so that a second start would be seen.
SERVER = """
import os, sys
start = os.urandom(8).hex()
print("warming", flush=True)
open("/ready", "w").write("yes")
print("ready", flush=True)
for line in sys.stdin:
    print(start, os.urandom(8).hex(), flush=True)
"""


def recipe(name: str, *command: str, **wishes: Any) -> Recipe:
    return Recipe(name=name, spec=SandboxSpec(image=IMAGE, command=list(command), stdin=True), **wishes)


def test_sandboxes_go_on_from_where_the_workload_is(client: NodeClient, converse: Callable[..., Any]) -> None:
    made = client.build_template(
        recipe("server", "python3", "-c", SERVER, ready_log="ready", ready_command=["test", "-f", "/ready"])
    )
    try:
        assert made.fresh and made.stored_bytes > 0
        assert client.list() == []  # it is no sandbox of anybody
        one = client.run_template("server", Fork(name="one", labels={"a": "b"}))
        two = client.run_template("server")
        assert (one.name, one.spec.labels, one.state) == ("one", {"a": "b"}, SandboxState.RUNNING)
        talks = [converse(client.attach(info.id, logs=True)) for info in (one, two)]
        assert [[talk.hear(), talk.hear()] for talk in talks] == [["warming", "ready"]] * 2
        (start, first), (other, second) = (talk.ask("x").split() for talk in talks)
        assert start == other  # started once
        assert first != second
        again = client.build_template(made.recipe)  # replaces it
        assert [template.snapshot for template in client.templates()] == [again.snapshot]
        assert talks[0].ask("y").split()[0] == start  # what was made from the old one goes on
        client.suspend(one.id)
        client.resume(one.id)
        assert talks[0].ask("z").split()[0] == start
    finally:
        client.remove_template("server")
    with pytest.raises(NotFound, match="no such template"):
        client.run_template("server")
    assert talks[1].ask("x").split()[0] == start


def test_a_template_whose_image_has_changed_is_built_again(client: NodeClient, home: Home) -> None:
    old = client.build_template(recipe("late", "sleep", "1000"))
    try:
        record = next(home.sandboxes.glob("*/sandbox.json"))
        digest = old.image_digest.encode()
        client.shutdown()
        record.write_bytes(
            record.read_bytes().replace(b'"image_digest":"' + digest, b'"image_digest":"sha256:' + b"0" * 64)
        )
        from perdure.client.node import ensure_running

        ensure_running(home)
        (found,) = client.templates()
        assert not found.fresh
        info = client.run_template("late")
        (built,) = client.templates()
        assert built.fresh and built.snapshot != old.snapshot
        assert info.image_digest == built.image_digest
    finally:
        client.remove_template("late")


def test_the_command_line(client: NodeClient, fcrun: Callable[..., Any]) -> None:
    argv = ["-i", "-l", "kind=server", "--ready-log", "ready", "--ready-cmd", "test -f /ready", IMAGE]
    built = fcrun("template", "build", "--name", "cli", *argv, "python3", "-c", SERVER)
    assert (built.returncode, built.stdout) == (0, "cli\n"), built.stderr
    try:
        listed = fcrun("template", "ls", "--format", "{{.Name}} {{.Ready}} {{.State}}").stdout
        assert listed == "cli log 'ready', cmd test -f /ready fresh\n"
        ran = fcrun("run", "--rm", "-i", "--template", "cli", stdin="a\nb\n")
        assert ran.returncode == 0, ran.stderr
        *before, first, second = ran.stdout.splitlines()
        assert before == ["warming", "ready"]
        detached = fcrun("run", "-d", "--name", "cli-one", "-l", "more=1", "--template", "cli")
        (info,) = client.list()
        assert (info.id, info.name) == (detached.stdout.strip(), "cli-one")
        assert info.spec.labels == {"kind": "server", "more": "1"}
        assert first.split()[0] == second.split()[0]  # of one start
    finally:
        removed = fcrun("template", "rm", "cli")
    assert removed.stdout == "cli\n"
    assert fcrun("run", "--template", "cli").returncode == 125


def test_templates_that_cannot_be(client: NodeClient) -> None:
    with pytest.raises(Conflict, match=r"ended \(exit status 3\) before it was ready"):
        client.build_template(recipe("gone", "sh", "-c", "exit 3", ready_log="never"))
    with pytest.raises(Conflict, match="was not ready within 1 s"):
        client.build_template(recipe("slow", "sleep", "1000", ready_log="never", timeout_s=1))
    with pytest.raises(CommandNotFound):
        client.build_template(recipe("odd", "sleep", "1000", ready_command=["no-such-program"]))
    with pytest.raises(NotFound):
        client.build_template(Recipe(name="none", spec=SandboxSpec(image="no-such-image")))
    with pytest.raises(InvalidValue):
        client.build_template(recipe("../x", "sleep", "1000"))
    with pytest.raises(InvalidValue, match="before its timeout"):
        client.build_template(recipe("x", "sleep", "1000", timeout_s=-1))
    assert client.templates() == []
