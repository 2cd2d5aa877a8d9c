"""What does not fit on a node is refused before anything is begun; nothing here needs a machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import NoRoom
from perdure.host.paths import Home
from perdure.model import SandboxSpec, SandboxState
from perdure.testing.commands import Fcrun
from perdure.testing.tinynodes import box_asleep, new_home, tiny_node


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """Its running sandboxes may have 64 MiB together; ``box`` is suspended and would need 512."""
    home = new_home(tmp_path)
    box_asleep(home)
    (home.root / "settings.toml").write_text("[node]\nmemory_mib = 64\n")
    with tiny_node(home):
        yield home


def test_a_start_that_does_not_fit_is_refused(home: Home) -> None:
    client, fcrun = NodeClient(home), Fcrun(home)
    info = client.create(SandboxSpec(image="tiny", command=["/bin/true"], name="large", memory_mib=65))
    with pytest.raises(NoRoom, match="a sandbox of 65 MiB of memory does not fit: 64 of 64 MiB are free"):
        client.start(info.id)
    assert client.get("large").state is SandboxState.CREATED
    status, out, said = fcrun("run", "-m", "65m", "--name", "other", "tiny", "/bin/true")
    assert (status, out) == (125, "") and "65 MiB" in said and "settings.toml" in said
    assert client.get("other").state is SandboxState.CREATED  # as docker leaves one whose start failed,
    for how in ((), ("-d",)):
        assert fcrun("run", "--rm", *how, "-m", "65m", "--name", "gone", "tiny", "/bin/true")[0] == 125
    assert [one.name for one in client.list() if one.name == "gone"] == []  # but for --rm


def test_a_resume_and_a_wake_that_do_not_fit_are_refused(home: Home) -> None:
    client, fcrun = NodeClient(home), Fcrun(home)
    with pytest.raises(NoRoom, match="512 MiB of memory does not fit"):
        client.resume("box")
    for command in (("exec", "box", "true"), ("exec", "-d", "box", "true"), ("attach", "box"), ("cp", "box:/x", "-")):
        status, out, said = fcrun(*command)
        assert (status, out) == (125, "") and "512 MiB" in said, command
    assert client.get("box").state is SandboxState.SUSPENDED


def test_so_is_a_machine_that_is_to_read_a_sandbox(home: Home) -> None:
    """It has as much memory as the sandbox, and is one more."""
    client, fcrun = NodeClient(home), Fcrun(home)
    client.create(SandboxSpec(image="tiny", command=["/bin/true"], name="large", memory_mib=65))
    for command in (("diff", "box"), ("diff", "large"), ("export", "large"), ("commit", "large", "made")):
        status, out, said = fcrun(*command)
        assert (status, out) == (125, "") and "of memory does not fit" in said, command
    assert not list(home.run.glob("reading-*"))


def test_what_a_killed_node_was_reading_goes_with_the_next_start(home: Home) -> None:
    left = home.run / "reading-0123456789ab-01234567"
    left.mkdir()
    (left / "overlay").write_bytes(b"a clone of a disk")
    NodeClient(home).shutdown()
    ensure_running(home)
    assert not left.exists()
