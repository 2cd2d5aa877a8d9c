"""An agent with a counter in memory and notes in a file: it asks a model, waits for a person, asks again, and ends.

    perdure run examples/counter.py:counter --input '{"topic": "owls"}'

While it waits, its machine is gone. When it goes on, it is the same process: ``pid``, ``started`` and ``counter`` are
plain memory, the notes a plain file.
"""

from __future__ import annotations

import os
import time

from perdure import Context, agent

NOTES = "notes.txt"


@agent(memory_mib=512)
def counter(ctx: Context, topic: str) -> dict[str, object]:
    started = time.time()
    count = 0

    def state() -> dict[str, object]:
        with open(NOTES, "rb") as file:
            return {"pid": os.getpid(), "started": started, "counter": count, "file": file.readline().decode().strip()}

    first = ctx.chat(f"In one short sentence: what are {topic}?", max_tokens=60)
    count += 1
    write(first.text)
    ctx.emit("state", state())

    verdict = ctx.approval(f"Ask more about {topic}?", show=first.text, timeout="3d")

    count += 1
    ctx.emit("state", state())
    if verdict.approved:
        question = f"Tell me a long story about {topic}."
        second = ctx.chat(question, on_delta=lambda text: print(text, end="", flush=True), max_tokens=200)
        write(second.text)
    lines = ctx.step("count the lines", count_lines)
    return {**state(), "approved": verdict.approved, "comment": verdict.comment, "lines": lines}


def write(text: str) -> None:
    with open(NOTES, "a") as file:
        file.write(" ".join(text.split()) + "\n")


def count_lines() -> int:
    with open(NOTES) as file:
        return len(file.readlines())
