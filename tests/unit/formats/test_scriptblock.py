"""What a file says that it needs: PEP 723's block, and nothing that could be anything else to pip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import AgentInvalid
from perdure.formats.scriptblock import Needs, read

WHOLE = """#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "httpx[http2]>=0.27,<1",
#   "rich ; python_version < '4'",
#   "Perdure",
#   "owls @ https://example.org/owls-1.0-py3-none-any.whl#sha256=00",
# ]
#
# [tool.other]
# x = 1
# ///
import httpx
"""


def block(line: str) -> str:
    return f"# /// script\n# {line}\n# ///\n"


def test_the_block_is_read_without_the_sdk_itself() -> None:
    wanted = ("httpx[http2]>=0.27,<1", "rich ; python_version < '4'")
    needs = Needs((*wanted, "owls @ https://example.org/owls-1.0-py3-none-any.whl#sha256=00"), ">=3.11")
    assert read(WHOLE, "x.py") == read(WHOLE.replace("\n", "\r\n"), "x.py") == needs
    for source in ("", "import x", "# /// other\n# a\n# ///\n", "# /// script\nno end", block("x = 1")):
        assert read(source, "x.py") == Needs()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (block("x = ") + "\n" + block("y = 1"), "has 2 blocks"),
        (block("dependencies = ["), "is not TOML"),
        (block("dependencies = 'x'"), "is wrong"),
        (block("requires-python = 3"), "is wrong"),
        (block("dependencies = [3]"), "3 is not a requirement"),
        *(
            (block(f"dependencies = ['{text}']"), "is not a requirement")
            for text in (
                "--index-url=http://x",
                "-r x",
                "./folder",
                "/x",
                "git+https://x/y",
                "",
                "a b",
                "https://x/y.whl",
            )
        ),
        (block("dependencies = ['owls @ file:///owls.whl']"), "that is no wheel"),
        (block("dependencies = ['owls @ git+https://example.org/owls.whl']"), "that is no wheel"),
        (block("dependencies = ['owls @ https://example.org/owls.tar.gz']"), "that is no wheel"),
        (block("dependencies = ['owls @ https://example.org/owls.tar.gz?x.whl']"), "that is no wheel"),
        (block("dependencies = ['perdure[pydantic-ai]']"), "Perdure itself is the server's"),
    ],
)
def test_what_is_wrong_is_said(source: str, message: str) -> None:
    with pytest.raises(AgentInvalid, match=message) as refused:
        read(source, "x.py")
    assert refused.value.hint and refused.value.message.startswith("x.py")


@given(st.text())
def test_nothing_that_is_taken_is_an_option_or_a_path(text: str) -> None:
    quoted = "".join(f"\\U{ord(char):08x}" for char in text if not 0xD800 <= ord(char) < 0xE000)
    try:
        needs = read(block(f'dependencies = ["{quoted}"]'), "x.py")
    except AgentInvalid:
        return
    assert all(one.strip()[0].isalnum() for one in needs.packages)
