from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.linux import sparse

BLOCK = 4096


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sparse", numbered=True)


def copied(folder: Path, blocks: list[tuple[int, bytes]], size: int, *, drop_zeros: bool) -> tuple[bytes, bytes, int]:
    """(what the source holds, what the copy holds, the bytes that were copied)."""
    with (folder / "source").open("w+b") as source, (folder / "target").open("w+b") as target:
        source.truncate(size)
        for at, data in blocks:
            os.pwrite(source.fileno(), data, at)
        direct = sparse.open_direct(str(folder / "source"))
        try:
            total = sum(sparse.copy(direct, target.fileno(), drop_zeros=drop_zeros))
        finally:
            os.close(direct)
        return os.pread(source.fileno(), 1 << 26, 0), os.pread(target.fileno(), 1 << 26, 0), total


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from([b"\0", b"x", b"\0" * 4095 + b"y"])), max_size=30),
    st.integers(0, 61 * BLOCK),
    st.booleans(),
)
def test_a_copy_holds_the_same(folder: Path, blocks: list[tuple[int, bytes]], size: int, drop_zeros: bool) -> None:
    data = [(number * BLOCK, (fill * BLOCK)[:BLOCK]) for number, fill in blocks]
    before, after, total = copied(folder, data, size, drop_zeros=drop_zeros)
    assert before == after
    if drop_zeros:
        assert total <= sum(
            len(before[at : at + BLOCK]) for at in range(0, len(before), BLOCK) if any(before[at : at + BLOCK])
        )


def test_zeros_that_are_data_stay_data_unless_told(folder: Path) -> None:
    blocks = [(0, bytes(1 << 20)), (4 << 20, b"x" * (1 << 20))]
    assert copied(folder, blocks, 8 << 20, drop_zeros=False)[2] == 2 << 20
    assert copied(folder, blocks, 8 << 20, drop_zeros=True)[2] == 1 << 20
    assert (folder / "target").stat().st_blocks * 512 == 1 << 20


def test_extents(folder: Path) -> None:
    with (folder / "extents").open("w+b") as file:
        assert list(sparse.extents(file.fileno())) == []
        file.truncate(10 << 20)
        assert list(sparse.extents(file.fileno())) == []
        os.pwrite(file.fileno(), b"x" * BLOCK, 1 << 20)
        os.pwrite(file.fileno(), b"y" * BLOCK, (10 << 20) - BLOCK)
        assert list(sparse.extents(file.fileno())) == [(1 << 20, BLOCK), ((10 << 20) - BLOCK, BLOCK)]


@pytest.mark.parametrize("change", ["nothing", "written", "grown data", "hole punched", "zeros written"])
def test_a_copy_is_brought_up_to_date(tmp_path: Path, change: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    block = BLOCK
    with source.open("wb+", buffering=0) as file, target.open("wb+", buffering=0) as copy:
        file.truncate(4 << 20)
        os.pwrite(file.fileno(), os.urandom(300 * block), 10 * block)
        for _ in sparse.copy(file.fileno(), copy.fileno()):
            pass
        if change == "written":
            os.pwrite(file.fileno(), b"new", 100 * block + 5)
        elif change == "grown data":
            os.pwrite(file.fileno(), os.urandom(2 * block), 900 * block)
        elif change == "hole punched":
            subprocess.run(
                ["fallocate", "-p", "-o", str(20 * block), "-l", str(64 * block), source], check=True, timeout=60
            )
        elif change == "zeros written":
            os.pwrite(file.fileno(), bytes(30 * block), 15 * block)
        written = sparse.bring_up_to_date(file.fileno(), copy.fileno())
    assert target.read_bytes() == source.read_bytes()
    assert (written == 0) == (change == "nothing")
    assert written <= 64 * block + (128 << 10)
