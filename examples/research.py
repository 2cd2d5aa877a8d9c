"""An agent that asks two questions, has a draft approved by a person, and gives it back.

perdure run examples/research.py:research --input '{"topic": "owls"}'
perdure approve RUN --comment "shorter, please" --deny
"""

from __future__ import annotations

from perdure import Context, agent


@agent(memory_mib=512)
def research(ctx: Context, topic: str) -> str:
    notes: list[str] = []  # plain memory: survives as it is
    for question in ("what", "why"):
        turn = ctx.chat([{"role": "user", "content": f"In one sentence: {question} is {topic}?"}], max_tokens=80)
        notes.append(turn.text)
        with open("notes.txt", "a") as file:  # plain files: survive as they are
            file.write(turn.text + "\n")
    draft: str = ctx.step("draft", summarise, notes)  # recorded once, answered from the log afterwards
    verdict = ctx.approval("Publish this?", show=draft, timeout="3d")  # the VM is gone while a person sleeps
    if not verdict.approved:
        draft = ctx.chat(f"{draft}\n\nSay this again: {verdict.comment or 'in other words'}.", max_tokens=80).text
    ctx.emit("report", draft)  # live output, read by whoever follows
    return draft


def summarise(notes: list[str]) -> str:
    return " ".join(note.split(".")[0].strip() + "." for note in notes)
