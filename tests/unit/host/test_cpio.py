"""Archives that the cpio program and a second reader understand."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.host.cpio import Entry, archive


def read(data: bytes) -> list[Entry]:
    """The entries of one archive: a reader written from the format's description, not from the writer."""
    found, at = [], 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        body = at + 110 + name_size + -(110 + name_size) % 4
        if name == b"TRAILER!!!\0":
            assert body == len(data)
            return found
        found.append(Entry(name[:-1].decode(), mode, data[body : body + size]))
        at = body + size + -size % 4


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=20).filter(
    lambda name: name != "TRAILER!!!"
)


@given(st.lists(st.builds(Entry.file, names, st.binary(max_size=100))))
def test_round_trip(entries: list[Entry]) -> None:
    assert read(archive(entries)) == entries


def test_folders_and_permissions() -> None:
    folder, init = read(archive([Entry.folder("mod"), Entry.file("init", b"x", 0o755)]))
    assert stat.S_ISDIR(folder.mode)
    assert stat.S_IMODE(init.mode) == 0o755


def test_the_same_entries_give_the_same_bytes() -> None:
    entries = [Entry.folder("a"), Entry.file("a/b", b"c")]
    assert archive(entries) == archive(entries)


def test_refuses_an_absolute_name() -> None:
    with pytest.raises(ValueError, match="initramfs"):
        archive([Entry.file("/init", b"")])
