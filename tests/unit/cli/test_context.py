"""What a ``.dockerignore`` leaves out of a build's context: the examples of Docker's documentation, and more."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from perdure.cli.fcrun import _context


@pytest.mark.parametrize(
    ("rules", "out", "stays"),
    [
        ("*/temp*", ["somedir/temporary.txt", "somedir/temp", "somedir/temp/x"], ["temp", "a/b/temp"]),
        ("*/*/temp*", ["somedir/subdir/temporary.txt"], ["somedir/temp"]),
        ("temp?", ["tempa", "tempb", "tempa/x"], ["temp", "tempab"]),
        ("**/*.go", ["a.go", "x/y/b.go"], ["a.got", "go"]),
        ("*.md\n!README.md", ["a.md"], ["README.md", "x/a.md"]),
        ("*.md\n!README*.md\nREADME-secret.md", ["a.md", "README-secret.md"], ["README-a.md"]),
        ("*.md\nREADME-secret.md\n!README*.md", ["a.md"], ["README-secret.md"]),
        ("# comment\n\n  /foo/bar/  \n", ["foo/bar", "foo/bar/x"], ["foo", "x/foo/bar", "# comment"]),
        ("foo\n!foo/kept", ["foo", "foo/x"], ["foo/kept", "foo/kept/deep"]),
        ("**", ["a", "a/b"], []),
        ("*\n!a", ["b", "b/c"], ["a", "a/b"]),
        ("a/**/z", ["a/z", "a/b/c/z"], ["z", "b/a/z"]),
        ("[a-c].x\n\\*y", ["a.x", "*y"], ["d.x", "zy"]),
        ("../outside\n.", [], ["outside", "a"]),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_ignored(rules: str, out: list[str], stays: list[str]) -> None:
    ignored = _context.ignored_by(rules)
    assert [path for path in out + stays if ignored(path)] == out


def test_a_folder_is_packed_as_it_is(tmp_path: Path) -> None:
    place = tmp_path / "context"
    (place / "sub").mkdir(parents=True)
    (place / "Dockerfile").write_text("FROM scratch\n")
    (place / ".dockerignore").write_text("*\n!sub\n")
    (place / "sub/run").write_text("x")
    (place / "sub/run").chmod(0o755)
    (place / "sub/again").hardlink_to(place / "sub/run")
    (place / "sub/link").symlink_to("/nowhere")
    (place / "left-out").write_text("x")
    os.mkfifo(place / "sub/fifo")
    (place / "sub" / os.fsdecode(b"raw-\xff")).write_text("")
    found = _context.of(str(place), "")
    assert found.dockerfile == "Dockerfile"
    with tarfile.open(fileobj=io.BytesIO(b"".join(found.chunks)), errors="surrogateescape") as tar:
        members = {member.name: member for member in tar}
    names = {"Dockerfile", ".dockerignore", "sub", "sub/run", "sub/again", "sub/link", "sub/raw-\udcff"}
    assert set(members) == names
    assert {members["sub/run"].type, members["sub/again"].type} == {tarfile.REGTYPE, tarfile.LNKTYPE}
    assert members["sub/link"].linkname == "/nowhere" and members["sub/run"].mode == 0o755
