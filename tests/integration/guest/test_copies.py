"""``fcrun cp`` between this machine and a real guestd, by the rules that docker documents for ``docker cp``."""

from __future__ import annotations

import asyncio
import io
import os
import stat
import tarfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from perdure.cli.fcrun import _copy
from perdure.errors import InvalidValue, NotFound
from perdure.execution.sandboxes import archive

from .conftest import DEADLINE_S, Guest

T = TypeVar("T")


class Client:
    """What ``cp`` asks a node, answered by the guest as the node does it; ``root``: its files."""

    def __init__(self, guest: Guest, root: Path) -> None:
        self._files, self._root, self._loop = guest.session.files, root, asyncio.get_running_loop()
        self._upload = root.parent / "upload"

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def get(self, ref: str) -> None:
        if ref != "box":
            raise NotFound(f"no such sandbox: {ref}")

    def stat(self, ref: str, path: str, *, follow: bool = True) -> dict[str, Any]:
        self.get(ref)
        found = self._wait(self._files.stat(f"{self._root}{path}", follow=follow))
        return {"mode": found.mode, "link": found.link}

    def put_archive(self, ref: str, path: str, tar: Iterable[bytes]) -> None:
        if not stat.S_ISDIR(self.stat(ref, path)["mode"]):
            raise InvalidValue(f"{path} is no folder")
        pieces = iter(tar)

        async def arriving() -> AsyncIterator[bytes]:
            while data := await asyncio.to_thread(next, pieces, b""):
                yield data

        self._upload.unlink(missing_ok=True)
        root = f"{self._root}{path}".rstrip("/")
        self._wait(archive.unpack_arriving(arriving(), self._upload, root, self._files))

    def get_archive(self, ref: str, path: str) -> Iterator[bytes]:
        pieces = archive.pack(f"{self._root}{path}".rstrip("/"), self._files)
        while (data := self._wait(anext(pieces, None))) is not None:
            yield data


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The files of the sandbox."""
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


@pytest.fixture
async def cp(guest: Guest, there: Path) -> Callable[..., Any]:
    client: Any = Client(guest, there)

    async def cp(source: str, target: str, **how: bool) -> int:
        how = {"follow": False, "keep_owner": False} | how
        one, other = _copy.place(source), _copy.place(target)
        if other.sandbox is not None:
            return await asyncio.to_thread(_copy.into, client, one.path, other.sandbox, other.path, **how)
        assert one.sandbox is not None
        return await asyncio.to_thread(_copy.out_of, client, one.sandbox, one.path, other.path, **how)

    return cp


def grow(root: Path, tree: dict[str, str | None]) -> None:
    """Folders (None), links (->TARGET) and files by path."""
    for path, what in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if what is None:
            (root / path).mkdir(exist_ok=True)
        elif what.startswith("->"):
            (root / path).symlink_to(what[2:])
        else:
            (root / path).write_text(what)


def seen(root: Path) -> dict[str, str | None]:
    """The same the other way round."""
    found: dict[str, str | None] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        found[name] = f"->{path.readlink()}" if path.is_symlink() else None if path.is_dir() else path.read_text()
    return found


FILE: dict[str, str | None] = {"f": "new"}
TREE: dict[str, str | None] = {"d": None, "d/f": "new"}
# what there is at the source, and its name; what there is at the target, and its name; then what is there, or the error
CASES: list[tuple[str, dict[str, str | None], str, dict[str, str | None], str, dict[str, str | None] | str]] = [
    ("file, nothing there", FILE, "f", {}, "x", {"x": "new"}),
    ("file, nothing there, and a slash", FILE, "f", {}, "x/", "no such folder"),
    ("file, a file there", FILE, "f", {"x": "old"}, "x", {"x": "new"}),
    ("file, a folder there", FILE, "f", {"x": None}, "x", {"x": None, "x/f": "new"}),
    ("file, a folder there, and a slash", FILE, "f", {"x": None}, "x/", {"x": None, "x/f": "new"}),
    ("file, one of its name in the folder there", FILE, "f", {"x/f": "old"}, "x", {"x": None, "x/f": "new"}),
    ("file, a folder of its name in the folder there", FILE, "f", {"x/f": None}, "x", "director|overwrite"),
    ("file, a file there, and a slash", FILE, "f", {"x": "old"}, "x/", "no such folder|[Nn]ot a directory|no folder"),
    ("file, no folder above", FILE, "f", {}, "no/x", "no such folder|No such file"),
    ("file with a slash", FILE, "f/", {}, "x", "Not a directory|no folder"),
    ("file as a folder", FILE, "f/.", {}, "x", "Not a directory|no folder"),
    ("nothing", {}, "f", {}, "x", "No such file"),
    ("folder, nothing there", TREE, "d", {}, "x", {"x": None, "x/f": "new"}),
    ("folder, nothing there, and a slash", TREE, "d", {}, "x/", {"x": None, "x/f": "new"}),
    ("folder with a slash, nothing there", TREE, "d/", {}, "x", {"x": None, "x/f": "new"}),
    ("content, nothing there", TREE, "d/.", {}, "x", {"x": None, "x/f": "new"}),
    ("folder, a file there", TREE, "d", {"x": "old"}, "x", "cannot copy directory"),
    ("folder, a folder there", TREE, "d", {"x": None}, "x", {"x": None, "x/d": None, "x/d/f": "new"}),
    ("folder with a slash, a folder there", TREE, "d/", {"x": None}, "x", {"x": None, "x/d": None, "x/d/f": "new"}),
    ("content, a folder there", TREE, "d/.", {"x/old": "old"}, "x", {"x": None, "x/f": "new", "x/old": "old"}),
    ("content over content", TREE, "d/.", {"x/f": "old"}, "x", {"x": None, "x/f": "new"}),
    ("content, a file there", TREE, "d/.", {"x": "old"}, "x", "cannot copy directory"),
    ("folder over a file of its name", TREE, "d", {"x/d": "old"}, "x", "director|overwrite"),
    ("link", {"l": "->f", "f": "new"}, "l", {}, "x", {"x": "->f"}),
    ("link into a folder", {"l": "->f", "f": "new"}, "l", {"x": None}, "x", {"x": None, "x/l": "->f"}),
    ("link to a folder with a slash", {"l": "->d", **TREE}, "l/.", {"x": None}, "x", {"x": None, "x/f": "new"}),
    ("link over a link", {"l": "->f"}, "l", {"x/l": "->old"}, "x", {"x": None, "x/l": "->f"}),
    ("file, a link to a folder there", FILE, "f", {"d": None, "x": "->d"}, "x", {"d": None, "d/f": "new", "x": "->d"}),
    ("file, a link to a file there", FILE, "f", {"o": "old", "x": "->o"}, "x", {"o": "new", "x": "->o"}),
    ("file, a link to nothing there", FILE, "f", {"x": "->o"}, "x", {"o": "new", "x": "->o"}),
    ("file over a link of its name", FILE, "f", {"x/o": "o", "x/f": "->o"}, "x", {"x": None, "x/f": "new", "x/o": "o"}),
    ("links within", {"d/l": "->/etc", "d/e": None}, "d", {}, "x", {"x": None, "x/e": None, "x/l": "->/etc"}),
    ("an odd name", {"d/\udcff\n é": "new"}, "d/\udcff\n é", {}, "\udcfe", {"\udcfe": "new"}),
]  # fmt: skip


@pytest.mark.parametrize("way", ["into", "out of"])
@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
async def test_where_a_copy_lands(cp: Any, here: Path, there: Path, way: str, case: Any) -> None:
    _, before, source, at, target, after = case
    left, right = (here, there) if way == "into" else (there, here)
    grow(left, before)
    grow(right, at)
    names = (f"./{source}", f"box:/{target}") if way == "into" else (f"box:{source}", f"./{target}")
    if isinstance(after, str):
        with pytest.raises((InvalidValue, NotFound), match=after):
            await cp(*names)
        assert seen(right) == seen(right) | {name: what for name, what in at.items() if what is not None}
    else:
        await cp(*names)
        assert seen(right) == dict(sorted(after.items()))
    assert seen(left) == seen(left) | before


@pytest.mark.parametrize("way", ["into", "out of"])
async def test_follow_link(cp: Any, here: Path, there: Path, way: str) -> None:
    """The copy has the link's name and what it leads to; links within stay links."""
    left, right = (here, there) if way == "into" else (there, here)
    grow(left, {"l": "->m", "m": "->d", "d/f": "new", "d/in": "->f"})
    grow(right, {"x": None})
    await cp(*(("l", "box:x") if way == "into" else ("box:l", "x")), follow=True)
    assert seen(right) == {"x": None, "x/l": None, "x/l/f": "new", "x/l/in": "->f"}


@pytest.mark.parametrize("way", ["into", "out of"])
async def test_links_holes_modes_and_times_travel(cp: Any, here: Path, there: Path, way: str) -> None:
    left, right = (here, there) if way == "into" else (there, here)
    grow(left, {"d/one": "same", "d/locked/f": "x", "d/empty": None})
    os.link(left / "d/one", left / "d/two")
    os.link(left / "d/one", left / "d/locked/three")
    with (left / "d/sparse").open("wb") as file:
        for at in (0, 9 << 20, 40 << 20):
            file.seek(at)
            file.write(b"data" * 1000)
        file.truncate(64 << 20)
    os.mkfifo(left / "d/pipe")
    (left / "d/one").chmod(0o4751)
    os.utime(left / "d/one", ns=(5, 1_234_567_890_123_456_789))
    (left / "d/locked").chmod(0o500)
    sent = await cp(*(("d", "box:/x") if way == "into" else ("box:/d", "x")), keep_owner=True)
    assert sent > 64 << 20
    got = right / "x"
    assert (got / "one").stat().st_ino == (got / "two").stat().st_ino == (got / "locked/three").stat().st_ino
    facts = (got / "one").stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_mtime_ns // 1000) == (0o4751, 1_234_567_890_123_456)
    assert stat.S_IMODE((got / "locked").stat().st_mode) == 0o500
    assert stat.S_ISFIFO((got / "pipe").stat().st_mode)
    assert (got / "sparse").read_bytes() == (left / "d/sparse").read_bytes()
    assert (got / "sparse").stat().st_blocks * 512 < 4 << 20
    assert (got / "empty").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
async def test_owners(cp: Any, here: Path, there: Path) -> None:
    grow(here, {"f": "x"})
    os.chown("f", 12, 34)
    await cp("f", "box:plain")
    await cp("f", "box:kept", keep_owner=True)
    assert [((there / name).stat().st_uid, (there / name).stat().st_gid) for name in ("plain", "kept")] == [
        (0, 0),
        (12, 34),
    ]
    (there / "kept").chmod(0o6755)
    await cp("box:kept", "plain")
    await cp("box:kept", "kept", keep_owner=True)
    facts = [(here / name).stat() for name in ("plain", "kept")]
    assert [(one.st_uid, one.st_gid, stat.S_IMODE(one.st_mode)) for one in facts] == [
        (os.geteuid(), os.getegid(), 0o755),  # nothing of a sandbox runs as another than who copied it
        (12, 34, 0o6755),
    ]


async def test_tar_streams(cp: Any, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In: with all that tar knows. Out: what docker sends, the last part of the path first."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for kind, name, link in (
            (tarfile.DIRTYPE, "./sub/", ""),
            (tarfile.REGTYPE, "./sub/f", ""),
            (tarfile.LNKTYPE, "hard", "./sub/f"),
            (tarfile.SYMTYPE, "soft", "sub/f"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, link, 0o755
            member.size = 3 if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(b"new") if member.size else None)
    grow(there, {"x": None, "file": ""})
    for target, words in (("box:/file", "must be a directory"), ("box:/no", "must be a directory")):
        with pytest.raises(InvalidValue, match=words):
            await cp("-", target)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(packed.getvalue())))
    await cp("-", "box:/x")
    assert seen(there / "x") == {"hard": "new", "soft": "->sub/f", "sub": None, "sub/f": "new"}
    assert (there / "x/hard").stat().st_nlink == 2
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out))
    await cp("box:/x/sub", "-")
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        assert tar.getnames() == ["sub", "sub/f"]


async def test_a_stream_that_breaks_off_ends_the_copy(guest: Guest, tmp_path: Path, there: Path) -> None:
    """In the middle of a file, and where it is no tar at all: nothing waits for what never comes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("f")
        member.size = 1 << 20
        tar.addfile(member, io.BytesIO(os.urandom(1 << 20)))

    async def broken(data: bytes, error: Exception | None) -> AsyncIterator[bytes]:
        yield data
        if error is not None:
            raise error

    half = packed.getvalue()[: 300 << 10]
    for number, (data, error, kind) in enumerate(
        (
            (half, ConnectionResetError("gone"), ConnectionResetError),
            (half, None, InvalidValue),
            (b"no tar" * 1000, None, InvalidValue),
            (b"", None, InvalidValue),
        )
    ):
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(kind):
                kept = tmp_path / f"kept-{number}"
                await archive.unpack_arriving(broken(data, error), kept, str(there), guest.session.files)
    assert guest.session.processes == {}


async def test_what_is_refused(cp: Any, here: Path, there: Path) -> None:
    grow(here, {"f": "x"})
    grow(there, {"f": "x", "loop": "->loop"})
    with pytest.raises(NotFound, match="no such sandbox"):
        await cp("f", "nobody:/x")
    with pytest.raises(InvalidValue, match="too many symbolic links"):
        await cp("f", "box:/loop")
    with pytest.raises(InvalidValue, match="too many symbolic links"):
        await cp("box:/loop", "x", follow=True)
    with pytest.raises(InvalidValue, match="directory or a regular file"):
        await cp("box:/f", "/dev/null")


async def test_an_older_guest_gets_copies_instead(cp: Any, guest: Guest, here: Path, there: Path) -> None:
    """One in a snapshot that was made before guests took links and holes."""
    guest.session.files._extended = False
    grow(here, {"d/one": "same"})
    os.link(here / "d/one", here / "d/two")
    with (here / "d/sparse").open("wb") as file:
        file.truncate(1 << 20)
    await cp("d", "box:/d")
    assert (there / "d/two").read_text() == "same" and (there / "d/two").stat().st_nlink == 1
    assert (there / "d/sparse").read_bytes() == bytes(1 << 20)


async def test_a_mount_and_what_fills_it(guest: Guest, there: Path) -> None:
    """guestd's mounts, with a tmpfs in the place of a volume: what was there before is copied in, once."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    grow(there, {"v/sub/f": "x", "v/l": "->sub"})
    (there / "v/sub").chmod(0o750)
    os.chown(there / "v/sub/f", 12, 34)
    os.setxattr(there / "v/sub/f", "trusted.test", b"kept")
    target = there / "v"
    orders = ("mount", "tmpfs", "tmpfs", str(target), "4", "size=8m", "0", "c")
    try:
        await guest.session.files.tool(*orders)
        assert os.path.ismount(target)
        assert seen(target) == {"l": "->sub", "sub": None, "sub/f": "x"}
        facts = (target / "sub/f").stat()
        assert stat.S_IMODE((target / "sub").stat().st_mode) == 0o750 and facts.st_size == 1
        await guest.session.files.tool("mount", str(target), "bind", str(target), "1", "", "0", "")
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()
        with pytest.raises(NotFound):
            await guest.session.files.tool("mount", "/dev/none", "ext4", str(there / "w"), "0", "", "0", "")
    finally:
        for _ in range(2):
            process = await asyncio.create_subprocess_exec("umount", str(target))
            await process.wait()
