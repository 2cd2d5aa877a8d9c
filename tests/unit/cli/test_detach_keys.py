"""Ctrl-p ctrl-q: however the terminal hands the keys over, the process sees neither; a lone ctrl-p is its own."""

from __future__ import annotations

import os
from typing import Any

import pytest

from perdure.cli.fcrun._terminal import Terminal, keys_of
from perdure.errors import InvalidValue


class Session:
    def __init__(self) -> None:
        self.got = b""
        self.ended = self.closed = False

    def send_stdin(self, data: bytes) -> None:
        assert data
        self.got += data

    def close_stdin(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("reads", "tty", "got", "detached"),
    [
        ([b"ab\x10\x11cd"], True, b"ab", True),
        ([b"ab\x10", b"\x11"], True, b"ab", True),
        ([b"ab", b"\x10", b"\x11"], True, b"ab", True),
        ([b"\x10", b"\x10", b"\x11"], True, b"\x10", True),
        ([b"a\x10", b"b"], True, b"a\x10b", False),
        ([b"a\x10"], True, b"a\x10", False),
        ([b"a\x11\x10", b"\n"], True, b"a\x11\x10\n", False),
        ([b"ab\x10\x11cd", b"\x10"], False, b"ab\x10\x11cd\x10", False),
    ],
)
def test_detach_keys(
    monkeypatch: pytest.MonkeyPatch, reads: list[bytes], tty: bool, got: bytes, detached: bool
) -> None:
    left = iter([*reads, b""])
    terminal: Any = Terminal(tty=tty, stdin=True)
    session = terminal._session = Session()
    with monkeypatch.context() as patched:
        patched.setattr(os, "read", lambda descriptor, size: next(left))
        terminal._send_stdin()
    assert (session.got, session.closed, session.ended) == (got, detached, not detached)


@pytest.mark.parametrize(
    ("keys", "reads", "got", "detached"),
    [
        ("ctrl-x,a,b", [b"1\x18a", b"b2"], b"1", True),
        ("ctrl-x,a,b", [b"\x18a", b"\x18a", b"b"], b"\x18a", True),
        ("ctrl-x,a,b", [b"\x18a", b"c"], b"\x18ac", False),
        ("q", [b"aq"], b"a", True),
        ("ctrl-]", [b"a\x10\x11\x1d"], b"a\x10\x11", True),
    ],
)
def test_other_detach_keys(
    monkeypatch: pytest.MonkeyPatch, keys: str, reads: list[bytes], got: bytes, detached: bool
) -> None:
    left = iter([*reads, b""])
    terminal: Any = Terminal(tty=True, stdin=True, detach_keys=keys)
    session = terminal._session = Session()
    with monkeypatch.context() as patched:
        patched.setattr(os, "read", lambda descriptor, size: next(left))
        terminal._send_stdin()
    assert (session.got, session.closed) == (got, detached)


@pytest.mark.parametrize(
    "keys", ["ctrl-", "ctrl-ab", "x,,y", "alt-x", "ctrl-1", "\N{LATIN SMALL LETTER E WITH ACUTE}", ","]
)
def test_keys_that_do_not_read(keys: str) -> None:
    with pytest.raises(InvalidValue, match="--detach-keys"):
        keys_of(keys)
