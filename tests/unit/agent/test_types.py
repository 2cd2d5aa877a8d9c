"""What a type checker says of an author's file."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import PIPE, run

AUTHORS = """
from __future__ import annotations
import asyncio
from typing import Any, assert_type
from perdure import AsyncContext, Context, Turn, Verdict, agent

def words(text: str) -> list[str]:
    return text.split()

async def length(text: str) -> int:
    return len(text)

@agent(durability="replay")
async def child(ctx: AsyncContext, topic: str) -> str:
    assert_type(await ctx.step("length", length, topic, retries=2), int)
    assert_type(await ctx.step("words", words, topic), list[str])
    assert_type(await ctx.tool(length)(topic), int)
    assert_type(await asyncio.gather(ctx.approval("ok?"), ctx.run(other, n=1)), tuple[Verdict, int])
    return topic

@agent
def other(ctx: Context, n: int) -> int:
    assert_type(ctx.step("words", words, "a b"), list[str])
    assert_type(ctx.tool(words, effect="read-only")("a b"), list[str])
    assert_type(ctx.chat("hello"), Turn)
    assert_type(ctx.wait_for("go"), Any)
    return len(ctx.run(child, topic="owls"))
"""
MISTAKES = {
    'from perdure import Contxt': 'has no attribute "Contxt"',
    'from perdure.agent import AsyncContxt': 'has no attribute "AsyncContxt"',
    'from perdure import agent\n@agent(durability="repaly")\ndef f(): ...': 'No overload variant of "agent"',
    'from perdure import Context\ndef f(ctx: Context) -> int:\n    return ctx.step("s", str, 1)': 'got "str"',
    'from perdure import Context\ndef f(ctx: Context) -> None:\n    ctx.tool(str, effect="onec")': "'onec'",
}  # fmt: skip


def test_what_comes_of_steps_and_children_has_its_type_and_what_is_mistyped_is_found(tmp_path: Path) -> None:
    files = {"authors.py": AUTHORS} | {f"mistake{number}.py": text for number, text in enumerate(MISTAKES)}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", tmp_path / "cache"]
    told = run([*command, *files], cwd=tmp_path, stdout=PIPE, text=True, check=False).stdout.splitlines()
    assert not [line for line in told if line.startswith("authors.py")]
    for number, says in enumerate(MISTAKES.values()):
        assert any(says in line for line in told if line.startswith(f"mistake{number}.py")), (says, told)
