"""``--disk-bandwidth`` and ``--disk-iops`` against a real node; nothing here needs a machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient
from perdure.testing.commands import Fcrun
from perdure.testing.tinynodes import box_asleep, new_home, tiny_node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[NodeClient, Fcrun]]:
    home = new_home(tmp_path)
    box_asleep(home)  # of before there were such limits
    with tiny_node(home) as client:
        yield client, Fcrun(home)


def test_what_was_asked_for_is_kept_and_shown(node: tuple[NodeClient, Fcrun]) -> None:
    client, fcrun = node
    shown = "{{.HostConfig.IOMaximumBandwidth}} {{.HostConfig.IOMaximumIOps}}"
    made = fcrun.said("create", "--disk-bandwidth", "10m", "--disk-iops", "500", "tiny", "true").strip()
    client.shutdown()  # the next one knows it, too
    assert fcrun.said("inspect", "-f", shown, made) == f"{10 << 20} 500\n"
    assert fcrun.said("inspect", "-f", shown, "box") == "0 0\n"
    spec = client.get(made).spec
    assert (spec.disk_bytes_per_s, spec.disk_ops_per_s) == (10 << 20, 500)


def test_what_nobody_could_live_with_is_refused(node: tuple[NodeClient, Fcrun]) -> None:
    client, fcrun = node
    for argv, words in (
        (["--disk-bandwidth", "1k"], "disk_bytes_per_s is 1024: it must be from 65536"),
        (["--disk-iops", "9"], "disk_ops_per_s is 9: it must be from 10"),
        (["--disk-bandwidth", "fast"], "--disk-bandwidth: 'fast' is no size"),
        (["--device-write-bps", "/dev/sda:1mb"], "--disk-bandwidth 10m"),
        (["--template", "web", "--disk-iops", "500"], "--template web excludes --disk-iops"),
    ):
        status, out, err = fcrun("run", *argv) if "--template" in argv else fcrun("create", *argv, "tiny")
        assert (status, out) == (125, "") and words in err, (argv, err)
    assert [info.name for info in client.list()] == ["box"]
