"""A sandbox's folder as an archive that fits anywhere."""

from __future__ import annotations

import io
import tarfile
from pathlib import PurePosixPath

from hypothesis import given
from hypothesis import strategies as st

from perdure.integrations import archives


def packed(*members: tuple[str, bytes, str, str]) -> bytes:
    """(type, content, name, where it leads) each."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for kind, content, name, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname, member.mode = kind.encode(), len(content), link, 0o640
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


FILE, LINK, HARD, FOLDER = (kind.decode() for kind in (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, b"5"))
LONG = "folder/" + "long" * 60


def test_members_are_named_from_the_folder_on() -> None:
    data = packed(
        (FOLDER, b"", "work", ""),
        (FOLDER, b"", "work/folder", ""),
        (FILE, b"one", "work/folder/a", ""),
        (FILE, b"two", f"work/{LONG}", ""),
        (HARD, b"", "work/b", "work/folder/a"),
        (LINK, b"", "work/folder/up", "/srv/work/b"),
        (LINK, b"", "work/out", "/etc/passwd"),
        (LINK, b"", "work/beside", "folder/a"),
        (FILE, b"not kept", "work/skip/c", ""),
        (FILE, b"kept", "work/skipped", ""),
    )
    made = archives.portable(pieces(data, 100), "/srv/work", {PurePosixPath("skip")})
    with made, tarfile.open(fileobj=made, mode="r:") as tar:
        found = {member.name: member for member in tar}
        assert set(found) == {"folder", "folder/a", LONG, "b", "folder/up", "out", "beside", "skipped"}
        assert found["b"].linkname == "folder/a"
        assert (found["folder/up"].linkname, found["out"].linkname) == ("../b", "/etc/passwd")
        assert found["beside"].linkname == "folder/a"
        read = tar.extractfile(LONG)
        assert read is not None and read.read() == b"two" and found[LONG].mode == 0o640


@given(st.binary(max_size=20_000), st.integers(1, 20_000))
def test_a_stream_is_read_in_whatever_pieces_it_comes(content: bytes, size: int) -> None:
    with archives.stream(pieces(packed((FILE, content, "a", "")), size)) as tar:
        member = tar.next()
        assert member is not None
        read = tar.extractfile(member)
        assert read is not None and read.read() == content
