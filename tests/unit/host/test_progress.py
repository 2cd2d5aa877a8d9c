from __future__ import annotations

import io

from perdure.host.progress import TerminalProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(stream: io.StringIO) -> str:
    with TerminalProgress(stream) as progress:
        progress("kernel", 0, 100)
        progress("kernel", 100, 100)
        progress("compiling", 0, 0)
    return stream.getvalue()


def test_elsewhere_it_is_one_line_a_step() -> None:
    assert report(io.StringIO()) == "kernel\ncompiling\n"


def test_a_terminal_shows_a_bar() -> None:
    text = report(Terminal())
    assert "[........................]   0 %" in text
    assert "[########################] 100 %" in text
    assert text.count("\n") == 2
    assert text.endswith("compiling …\n")
