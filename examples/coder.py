"""A coding agent: it works in a repository of its own until the tests pass, and a person looks at the change.

fcrun import --packages git,python3-minimal,libpython3-stdlib,ca-certificates coder
perdure run examples/coder.py:coder --input '{"repository": "https://example.org/owls.git", "task": "Mend the tests."}'
perdure approve RUN

The model's tools are plain functions on plain files: what they did is in the machine, which is captured after each turn
(`checkpoint_turns`), so that a lost run goes on from there. Only what reaches beyond it is recorded, with its effect
declared: the push.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from perdure import Context, agent

TREE = Path("tree")
SYSTEM = "You mend a program. Look at it and run its tests with your tools, and say what you did once they pass."
OUTPUT_MAX = 10_000  # characters that the model sees


@agent(image="coder", memory_mib=512, checkpoint_turns=1)
def coder(ctx: Context, repository: str, task: str) -> dict[str, object]:
    git("clone", "--quiet", repository, str(TREE))
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task}]
    while (turn := ctx.chat(messages, tools=[read, write, run])).tool_calls:
        messages += [turn.message, *map(ctx.use, turn.tool_calls)]
    git("add", "--all", at=TREE)
    diff = git("diff", "--cached", at=TREE)
    verdict = ctx.approval("Push this?", show=diff, timeout="7d")
    if verdict.approved:
        git("-c", "user.name=coder", "-c", "user.email=coder@localhost", "commit", "--quiet", "-m", task, at=TREE)
        push = ctx.tool(git, name="push", effect="idempotent")
        push("push", "--quiet", at=str(TREE))
    return {"said": turn.text, "diff": diff, "pushed": verdict.approved}


def read(path: str) -> str:
    """Read a file."""
    return (TREE / path).read_text()[-OUTPUT_MAX:]


def write(path: str, content: str) -> str:
    """Write a whole file."""
    (TREE / path).write_text(content)
    return "written"


def run(command: str) -> str:
    """Run a shell command, such as the tests."""
    done = subprocess.run(command, shell=True, cwd=TREE, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return f"{done.stdout[-OUTPUT_MAX:]}\nexit status {done.returncode}"


def git(*words: str, at: str | Path = ".") -> str:
    return subprocess.run(["git", *words], cwd=at, check=True, text=True, stdout=subprocess.PIPE).stdout
