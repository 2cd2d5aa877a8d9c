"""A coding agent: it works in a repository of its own until the tests pass, and a person looks at the change.

fcrun import --packages git,python3-minimal,libpython3-stdlib,ca-certificates coder
perdure run examples/coder.py:coder --input '{"repository": "https://example.org/owls.git", "task": "Mend the tests."}'
perdure approve RUN

Its tools are plain functions on plain files: what they did is in the machine, which is captured after each turn of the
model (`checkpoint_turns`), so that a lost run goes on from there. Only what reaches beyond it is a step: the push.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from perdure import Context, agent

TREE = Path("tree")
SYSTEM = "You mend a program. Look at it and run its tests with your tools, and say what you did once they pass."
TEXT = {"type": "string"}
OUTPUT_MAX = 10_000  # characters that the model sees


@agent(image="coder", memory_mib=512, checkpoint_turns=1)
def coder(ctx: Context, repository: str, task: str) -> dict[str, object]:
    git("clone", "--quiet", repository, str(TREE))
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task}]
    while True:
        turn = ctx.chat(messages, tools=[described(*tool) for tool in TOOLS.items()])
        messages.append(turn.message)
        calls = turn.message.get("tool_calls") or []
        for call in calls:
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": used(call["function"])})
        if not calls:
            break
    git("add", "--all", at=TREE)
    diff = git("diff", "--cached", at=TREE)
    verdict = ctx.approval("Push this?", show=diff, timeout="7d")
    if verdict.approved:
        git("-c", "user.name=coder", "-c", "user.email=coder@localhost", "commit", "--quiet", "-m", task, at=TREE)
        ctx.step("push", git, "push", "--quiet", at=str(TREE))
    return {"said": turn.text, "diff": diff, "pushed": verdict.approved}


def read(path: str) -> str:
    """Read a file."""
    return (TREE / path).read_text()


def write(path: str, content: str) -> str:
    """Write a whole file."""
    (TREE / path).write_text(content)
    return "written"


def run(command: str) -> str:
    """Run a shell command, such as the tests."""
    done = subprocess.run(command, shell=True, cwd=TREE, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return f"{done.stdout}\nexit status {done.returncode}"


TOOLS = {read: {"path": TEXT}, write: {"path": TEXT, "content": TEXT}, run: {"command": TEXT}}


def used(function: dict[str, str]) -> str:
    """What a tool gives; what goes wrong is for the model to know."""
    try:
        tool = next(tool for tool in TOOLS if tool.__name__ == function["name"])
        return str(tool(**json.loads(function["arguments"])))[-OUTPUT_MAX:]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def described(tool: object, properties: dict[str, object]) -> dict[str, object]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    told = {"name": tool.__name__, "description": tool.__doc__, "parameters": schema}
    return {"type": "function", "function": told}


def git(*words: str, at: str | Path = ".") -> str:
    return subprocess.run(["git", *words], cwd=at, check=True, text=True, stdout=subprocess.PIPE).stdout
