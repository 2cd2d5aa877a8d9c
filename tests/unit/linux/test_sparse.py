from __future__ import annotations

import os
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


def test_a_range_is_copied_with_its_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb+", buffering=0) as file, target.open("wb+", buffering=0) as copy:
        file.truncate(4 << 20)
        os.pwrite(file.fileno(), os.urandom(300 * BLOCK), 10 * BLOCK)
        copy.write(b"x" * (4 << 20))
        sparse.copy_range(file.fileno(), copy.fileno(), 5 * BLOCK, 700 * BLOCK)
        with pytest.raises(OSError, match="became shorter"):
            sparse.copy_range(file.fileno(), copy.fileno(), 1000 * BLOCK, 1100 * BLOCK)
    held, whole = target.read_bytes(), source.read_bytes()
    assert held[5 * BLOCK : 700 * BLOCK] == whole[5 * BLOCK : 700 * BLOCK]
    assert held[: 5 * BLOCK] == b"x" * (5 * BLOCK)
    assert held[700 * BLOCK : 1000 * BLOCK] == b"x" * (300 * BLOCK)
