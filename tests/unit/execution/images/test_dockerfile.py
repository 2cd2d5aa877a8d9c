"""What a Dockerfile builds upon."""

from __future__ import annotations

import pytest

from perdure.execution.images.dockerfile import images


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("FROM debian", ["debian"]),
        ("# comment\n\nfrom --platform=linux/amd64 debian:12 as one\nFROM one\nFROM scratch", ["debian:12"]),
        ("FROM a AS b\nFROM a\nCOPY --from=b / /\nCOPY --chown=1:2 --from=c:1 x /\nCOPY --from=0 y /", ["a", "c:1"]),
        ("FROM a\nRUN --mount=type=bind,from=tools,target=/t true", ["a", "tools"]),
        ("ARG V=12\nFROM debian:${V}", ["debian:12"]),
        ("ARG V\nARG N=x\nFROM $N:${V:-9}-${V:+set}", ["x:9-"]),
        ("ARG BASE\nFROM $BASE", []),
        ("FROM a\nARG V=late\nFROM b:$V", ["a", "b:"]),
        ('ARG I="quoted"\nFROM "${I}"', ["quoted"]),
        ("FROM \\\n  # between\n  debian \\\n  AS x", ["debian"]),
        ("# escape=`\nFROM `\n debian", ["debian"]),
        ("FROM SCRATCH\nFROM one AS Two\nFROM two", ["one"]),
        ("", []),
    ],
)
def test_images(text: str, found: list[str]) -> None:
    assert images(text, {}) == found


def test_arguments_win_over_defaults() -> None:
    assert images("ARG V=1\nFROM a:$V", {"V": "2"}) == ["a:2"]
