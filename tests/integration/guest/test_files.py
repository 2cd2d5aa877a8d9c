"""Files in and out of a guest, through guestd's file tools."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from perdure.errors import GuestFailed, InvalidValue, NotFound
from perdure.execution.guest.files import FileEntry, decode_record, encode_record

from .conftest import DEADLINE_S, Guest


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_write_read_stat(guest: Guest, tmp_path: Path) -> None:
    files, path, data = guest.session.files, str(tmp_path / "new/folder/file"), os.urandom(700_000)
    await files.write(path, chunks(data[:1], data[1:]), size=len(data), mode=0o640, uid=12, gid=34)
    assert b"".join([chunk async for chunk in files.read(path)]) == data
    entry = await files.stat(path)
    assert (entry.mode, entry.uid, entry.gid, entry.size) == (stat.S_IFREG | 0o640, 12, 34, len(data))
    assert Path(path).read_bytes() == data
    await files.write(path, chunks(b"short"), size=5)
    assert Path(path).read_bytes() == b"short"
    assert guest.session.processes == {}


async def test_small_operations(guest: Guest, tmp_path: Path) -> None:
    files = guest.session.files
    await files.mkdir(str(tmp_path / "a/b"), mode=0o700)
    await files.mkdir(str(tmp_path / "a/b"))
    await files.symlink(str(tmp_path / "a/link"), "b")
    await files.chmod(str(tmp_path / "a/b"), 0o711)
    await files.chown(str(tmp_path / "a/b"), 5, 6)
    link = await files.stat(str(tmp_path / "a/link"), follow=False)
    assert (stat.S_ISLNK(link.mode), link.link) == (True, "b")
    followed = await files.stat(str(tmp_path / "a/link"))
    assert (followed.mode, followed.uid, followed.gid) == (stat.S_IFDIR | 0o711, 5, 6)
    (tmp_path / "a/z").write_text("zz")
    assert [(e.path, e.size) for e in await files.list(str(tmp_path / "a"))] == [("b", 0), ("link", 0), ("z", 2)]
    await files.remove(str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


async def test_a_tree_out_and_in_again(guest: Guest, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "empty").mkdir(parents=True)
    (source / "sub/sub").mkdir(parents=True)
    for number in range(40):
        (source / f"sub/{number}").write_bytes(bytes([number]) * number * 3_000)
    (source / "sub/sub/link").symlink_to("../0")
    (source / "odd \udcff\n name").write_bytes(b"x")
    os.utime(source / "sub/7", ns=(1, 1_234_567_890_123_456_789))
    target.mkdir()
    files = guest.session.files
    async with asyncio.timeout(DEADLINE_S * 2), aclosing(files.pack(str(source))) as entries:
        await files.unpack(str(target), entries)  # the one streams into the other
    seen = {str(p.relative_to(source)): _facts(p) for p in source.rglob("*")}
    assert {str(p.relative_to(target)): _facts(p) for p in target.rglob("*")} == seen
    assert (target / "sub/7").stat().st_mtime_ns == 1_234_567_890_123_456_789


def _facts(path: Path) -> tuple[int, bytes]:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return mode, bytes(path.readlink())
    return mode, b"" if stat.S_ISDIR(mode) else path.read_bytes()


async def test_reading_goes_on_over_cuts(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(data := os.urandom(3_000_000))
    found, cuts = bytearray(), 0
    async with asyncio.timeout(DEADLINE_S * 2):
        async for chunk in guest.session.files.read(str(tmp_path / "big")):
            found += chunk
            if len(found) > 500_000 * (cuts + 1):
                cuts += 1
                await guest.cut()
    assert bytes(found) == data
    assert cuts >= 5


async def test_writing_goes_on_over_cuts(guest: Guest, tmp_path: Path) -> None:
    data = os.urandom(2_000_000)

    async def source() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 100_000):
            yield data[at : at + 100_000]
            if at % 500_000 == 0:
                await guest.cut()

    async with asyncio.timeout(DEADLINE_S * 2):
        await guest.session.files.write(str(tmp_path / "big"), source(), size=len(data))
    assert (tmp_path / "big").read_bytes() == data


async def test_leaving_a_read_early_ends_its_tool(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(3_000_000))
    async with asyncio.timeout(DEADLINE_S), aclosing(guest.session.files.read(str(tmp_path / "big"))) as content:
        async for _ in content:
            break
    assert guest.session.processes == {}


async def test_what_is_wrong_is_said(guest: Guest, tmp_path: Path) -> None:
    files = guest.session.files
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotFound, match="No such file"):
        await files.stat(str(tmp_path / "none"))
    with pytest.raises(NotFound):
        await files.remove(str(tmp_path / "none"))
    with pytest.raises(InvalidValue, match="not a directory"):
        await files.list(str(tmp_path / "file"))
    with pytest.raises(InvalidValue, match="not a regular file"):
        assert [chunk async for chunk in files.read(str(tmp_path))]
    with pytest.raises(InvalidValue, match="directory"):
        await files.write(str(tmp_path / "folder"), chunks(b"x"), size=1)
    with pytest.raises(InvalidValue, match=r"directory|Not a"):
        await files.write(str(tmp_path / "file/below"), chunks(b"x"), size=1)
    with pytest.raises(InvalidValue, match="5 bytes it was said"):
        await files.write(str(tmp_path / "short"), chunks(b"x"), size=5)
    with pytest.raises(InvalidValue, match="NUL"):
        await files.stat("a\0b")
    with pytest.raises(GuestFailed, match="no such file tool"):
        await files._run("no-such-tool")
    assert guest.session.processes == {}


def test_records_of_paths_that_lead_out_are_refused() -> None:
    for path in ("/etc/passwd", "../up", "a/../../b", "a\0b"):
        with pytest.raises(InvalidValue, match="leads out"):
            encode_record(FileEntry(path, stat.S_IFREG))
    with pytest.raises(InvalidValue, match="device"):
        encode_record(FileEntry("dev", stat.S_IFBLK))
    entry = FileEntry("a/b", stat.S_IFLNK | 0o777, 1, 2, 0, -5, "../c")
    assert decode_record(encode_record(entry)[4:]) == entry
