from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from perdure.errors import AssetTampered, NoSpace
from perdure.host.vault import Part, Vault, no_space, open_vault


def put(vault: Vault, key: str = "k", **files: bytes) -> Part:
    with vault.workshop() as workshop:
        made = {}
        for name, data in files.items():
            made[name] = workshop / name
            made[name].write_bytes(data)
        return vault.put("part", key, {"version": "1"}, made)


def test_what_was_put_is_found_by_the_next_opener(tmp_path: Path) -> None:
    with open_vault(tmp_path) as vault:
        part = put(vault, firecracker=b"F", jailer=b"J")
    with open_vault(tmp_path) as vault:
        assert vault.get("part") == vault.get("part", "k") == vault.get("part", thorough=True) == part
        assert vault.get("part", "other key") is None
        assert vault.get("other part") is None
    assert part.files["jailer"].read_bytes() == b"J"
    assert not list(tmp_path.glob(".making-*"))


def test_a_file_that_is_gone_is_made_again(tmp_path: Path) -> None:
    with open_vault(tmp_path) as vault:
        put(vault, a=b"A", b=b"B").files["b"].unlink()
        assert vault.get("part") is None
        assert put(vault, a=b"A", b=b"B").files["b"].read_bytes() == b"B"


@pytest.mark.parametrize("content", [b"AX", b"X"])
def test_a_changed_file_is_named(tmp_path: Path, content: bytes) -> None:
    with open_vault(tmp_path) as vault:
        path = put(vault, a=b"A").files["a"]
        path.write_bytes(content)
        with pytest.raises(AssetTampered, match=str(path)):
            vault.get("part")


def test_a_change_that_hides_its_time_is_found_by_a_thorough_look(tmp_path: Path) -> None:
    with open_vault(tmp_path) as vault:
        path = put(vault, a=b"A").files["a"]
        before = path.stat()
        path.write_bytes(b"X")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(AssetTampered):
            vault.get("part", thorough=True)


def test_a_touched_file_with_the_same_content_is_accepted(tmp_path: Path) -> None:
    with open_vault(tmp_path) as vault:
        os.utime(put(vault, a=b"A").files["a"], (1, 1))
        assert vault.get("part") is not None
    recorded = json.loads((tmp_path / "assets.json").read_text())
    assert recorded["parts"]["part"]["files"]["a"]["mtime_ns"] == 10**9


def test_a_damaged_index_is_not_trusted(tmp_path: Path) -> None:
    with open_vault(tmp_path) as vault:
        put(vault, a=b"A")
    (tmp_path / "assets.json").write_text('{"version": 1, "par')
    with open_vault(tmp_path) as vault:
        assert vault.get("part") is None


def test_a_second_opener_waits(tmp_path: Path) -> None:
    entered = threading.Event()

    def open_too() -> None:
        with open_vault(tmp_path):
            entered.set()

    with open_vault(tmp_path):
        thread = threading.Thread(target=open_too)
        thread.start()
        assert not entered.wait(0.1)
    assert entered.wait(10)
    thread.join()


def test_what_a_killed_maker_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".making-abc").mkdir()
    (tmp_path / ".making-abc" / "half").write_bytes(b"x")
    with open_vault(tmp_path):
        pass
    assert not (tmp_path / ".making-abc").exists()


def test_space_is_asked_for_before_a_download(tmp_path: Path) -> None:
    with open_vault(tmp_path) as vault, pytest.raises(NoSpace, match="are needed"):
        vault.require_space(1 << 62)


def test_a_full_disk_is_said_as_such(tmp_path: Path) -> None:
    with (
        pytest.raises(NoSpace, match="no space left"),
        no_space(tmp_path),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")
