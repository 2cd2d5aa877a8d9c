"""What a guest tells of itself: what its root is made of, its processes, what it uses."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import NotFound, ProtocolError, Unavailable, Unsupported
from perdure.execution.guest import tree
from perdure.execution.guest.tree import WAS, WAS_NOT, WAS_SAME, TreeEntry
from perdure.formats import channel
from perdure.model import ExecSpec

from .conftest import DEADLINE_S, Guest


async def listed(guest: Guest, upper: Path, lower: Path, *, content: bool = True) -> dict[str, tuple[TreeEntry, bytes]]:
    found = {}
    async for entry, data in guest.session.tree.of(str(upper), str(lower), content=content):
        found[entry.path] = (entry, b"".join([chunk async for chunk in data]))
    return found


async def test_what_a_folder_has_over_another(guest: Guest, tmp_path: Path) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for folder in (upper / "new", upper / "both", lower / "both", upper / "turned", lower / "real"):
        folder.mkdir(parents=True)
    (upper / "both").chmod(0o751)
    (lower / "turned").symlink_to("real")  # a link below a folder is not followed
    (lower / "real/file").write_text("x")
    (upper / "turned/file").write_text("y")
    (upper / "both/changed").write_bytes(os.urandom(200_000))
    (lower / "both/changed").write_text("old")
    os.link(upper / "both/changed", upper / "new/again")
    (upper / "link").symlink_to("/somewhere/else")
    with (upper / "sparse").open("wb") as file:
        os.pwrite(file.fileno(), b"end", (1 << 20) + 5)
    os.setxattr(upper / "sparse", "user.note", b"\0\xff")
    found = await listed(guest, upper, lower)
    assert found["new"][0].was == WAS_NOT and found["both"][0].was == WAS
    assert (found["turned"][0].was, found["turned/file"][0].was) == (WAS, WAS_NOT)
    changed, again = found["both/changed"], found["new/again"]
    assert changed[0].was == WAS and changed[1] == (upper / "both/changed").read_bytes() == again[1]
    assert (changed[0].file, changed[0].names) == (again[0].file, 2)
    assert (found["link"][0].link, stat.S_ISLNK(found["link"][0].mode)) == ("/somewhere/else", True)
    sparse = found["sparse"][0]
    assert sparse.size == (1 << 20) + 8 and sparse.attributes == {"user.note": b"\0\xff"}
    assert sum(length for _, length in sparse.extents) < 1 << 16 and found["sparse"][1].endswith(b"end")
    order = list(found)
    assert order.index("both") < order.index("both/changed")
    (upper / "both").chmod(0o755)
    named = await listed(guest, upper, lower, content=False)
    assert named["both"][0].was == WAS_SAME and named["both/changed"][1] == b"" == named["sparse"][1]
    with pytest.raises(NotFound):
        await listed(guest, tmp_path / "nothing", lower)


@pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts and opaque folders are root's to make")
async def test_what_is_deleted(guest: Guest, tmp_path: Path) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for folder in (upper / "opaque", lower / "opaque/hidden"):
        folder.mkdir(parents=True)
    (lower / "opaque/kept").write_text("1")
    (upper / "opaque/kept").write_text("2")
    os.mknod(upper / "gone", stat.S_IFCHR, 0)
    os.mknod(upper / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 300))
    (lower / "gone").write_text("")
    os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    found = {path: entry for path, (entry, _) in (await listed(guest, upper, lower)).items()}
    assert found["gone"].is_whiteout and found["gone"].was == WAS
    assert not found["disk"].is_whiteout and found["disk"].node == 7 << 32 | 300
    assert found["opaque"].is_opaque and found["opaque"].attributes == {}
    assert (found["opaque/hidden"].mode, found["opaque/kept"].was) == (0, WAS)
    assert set(found) == {"gone", "disk", "opaque", "opaque/hidden", "opaque/kept"}


async def test_the_processes(guest: Guest) -> None:
    running = await guest.session.exec(ExecSpec(command=["/bin/sh", "-c", "sleep 100 & wait", "a name"]))
    seen = await guest.session.tree.processes()
    mine = {int(process.stat.split()[0]): process for process in seen.processes}
    assert mine[running.pid].command == ("/bin/sh", "-c", "sleep 100 & wait", "a name")
    assert mine[running.pid].uid == os.geteuid()
    assert mine[running.pid].stat.split()[1] == "(sh)"
    assert all("kthreadd" not in process.stat for process in seen.processes)
    assert seen.uptime > 0 and seen.memory_kib > 1000 and seen.now > 1_700_000_000
    await running.signal(9, group=True)
    await running.wait()
    running.release()


async def test_the_usage_is_told_again_and_again(guest: Guest) -> None:
    for _ in range(200):  # more than requests are remembered
        usage = await asyncio.wait_for(guest.session.usage(), DEADLINE_S)
        assert usage is not None and 0 < usage.available_kib <= usage.total_kib
    assert usage.used_bytes == (usage.total_kib - usage.available_kib) << 10


async def test_a_guest_that_does_not_know_usage_is_not_asked_for_ever(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel.Usage, "type", 0x7A)  # as a guest from before it takes it
    for _ in range(2):
        await guest.session.ready(DEADLINE_S)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(guest.session.usage(), DEADLINE_S)
    await guest.session.ready(DEADLINE_S)
    with pytest.raises(Unsupported):
        await guest.session.usage()
    assert (await guest.session.files.stat("/")).mode  # all else goes on


def test_nothing_is_put_below_a_link() -> None:
    def entries(*named: str) -> None:
        order = tree._Order()
        for one in named:
            kind = stat.S_IFDIR if one.endswith("/") else stat.S_IFLNK
            order.check(TreeEntry(one.rstrip("/"), kind, 0, 0, 0, 0, (1, 1), 1, 0, 0, False, "", {}, ()))

    entries("a/", "a/b/", "a/b/c", "a/d", "e", "f/", "f/a", "f/e")
    for bad in (["a", "a/b"], ["a/b"], ["a/", "a"], ["a", "a/"], ["a/", "b", "a/c"], ["a/", "a/b/", "c/", "a/b/d"]):
        with pytest.raises(ProtocolError, match="out of order"):
            entries(*bad)


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 255))
def test_noise_in_a_record_never_does_more_than_raise(noise: bytes, at: int, byte: int) -> None:
    good = bytearray(tree._HEAD.pack(stat.S_IFREG, 0, 0, 9, 0, 1, 2, 1, 0, 0, 0))
    for text in (b"a/path", b""):
        good += tree._LENGTH.pack(len(text)) + text
    good += tree._LENGTH.pack(1) + b"".join(tree._LENGTH.pack(len(text)) + text for text in (b"user.x", b"\xff"))
    good += tree._LENGTH.pack(1) + tree._EXTENT.pack(2, 7)
    assert tree.decode(bytes(good)).attributes == {"user.x": b"\xff"}
    good[at % len(good)] = byte
    for head in (noise, bytes(good), bytes(good[:at])):
        try:
            tree.decode(head)
        except ProtocolError:
            pass


def test_what_a_guest_must_not_send() -> None:
    def head(path: bytes, size: int = 0, extents: tuple[tuple[int, int], ...] = ()) -> bytes:
        fixed = tree._HEAD.pack(stat.S_IFREG, 0, 0, size, 0, 1, 2, 1, 0, 0, 0)
        texts = (tree._LENGTH.pack(len(text)) + text for text in (path, b""))
        counts = tree._LENGTH.pack(0) + tree._LENGTH.pack(len(extents))
        return b"".join([fixed, *texts, counts, *(tree._EXTENT.pack(*extent) for extent in extents)])

    assert tree.decode(head(b"a/b", 9, ((1, 2), (5, 4)))).extents == ((1, 2), (5, 4))
    for bad in (
        *(head(path) for path in (b"", b"/a", b"..", b"a/../b", b"a//b", b"a\0", b"./a", b"x" * 256)),
        head(b"a", 9, ((1, 9),)),
        head(b"a", 9, ((5, 1), (2, 1))),
        head(b"a", 9, ((3, 0),)),
        head(b"a") + b"x",
        head(b"a")[:-1],
        b"",
    ):
        with pytest.raises(ProtocolError):
            tree.decode(bad)
