"""What fsck says of a disk that was captured while it was mounted. The real e2fsprogs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from perdure.errors import Unsupported
from perdure.execution.sandboxes import disk

FILES = 40


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    """A disk with some files, whose journal has yet to be replayed: a transaction that makes one more."""
    path = tmp_path / "overlay"
    disk.make(tmp_path / "empty", 64, path)
    debugfs(path, *(f"write /etc/passwd file{number}" for number in range(FILES)))
    assert disk.problem_of(path) == ""
    return path


def debugfs(path: Path, *commands: str) -> str:
    done = subprocess.run(
        [disk._program("debugfs"), "-w", "-f", "-", str(path)],
        input="\n".join(commands), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def header(path: Path) -> str:
    return subprocess.run(
        [disk._program("dumpe2fs"), "-h", str(path)], capture_output=True, text=True, check=True
    ).stdout


def test_a_journal_is_replayed_first(ext4: Path, tmp_path: Path) -> None:
    # the block bitmap as it is, written through the journal, and damaged where it belongs: only a replay heals that
    place = int(debugfs(ext4, "stats").partition("block bitmap at ")[2].split(",")[0])
    with ext4.open("r+b") as file:
        file.seek(place * 4096)
        whole = file.read(4096)
    (tmp_path / "block").write_bytes(whole)
    debugfs(ext4, "journal_open -c", f"journal_write -b {place} {tmp_path / 'block'}", "journal_close")
    assert "needs_recovery" in header(ext4)
    with ext4.open("r+b") as file:
        file.seek(place * 4096)
        file.write(bytes(4096))
    assert disk.problem_of(ext4) == ""
    assert "needs_recovery" not in header(ext4)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (["clri file3"], "file3"),
        (["set_inode_field file5 links_count 7"], "ref count is 7, should be 1"),
        (["unlink file7"], "Unattached"),
    ],
)
def test_damage_is_told(ext4: Path, damage: list[str], words: str) -> None:
    debugfs(ext4, *damage)
    assert words in disk.problem_of(ext4)


def test_what_is_no_file_system(tmp_path: Path) -> None:
    path = tmp_path / "overlay"
    path.write_bytes(bytes(1 << 20))
    assert "superblock" in disk.problem_of(path)


def test_without_e2fsck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.os, "access", lambda *_: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="e2fsck is not installed"):
        disk.problem_of(tmp_path / "overlay")
