"""A team: one child run per topic, all at once, each in a machine of its own; their notes make the answer.

perdure run examples/team.py:team --input '{"topics": ["owls", "cats"]}'
"""

from __future__ import annotations

from perdure import Context, agent


@agent(memory_mib=256)
def note(ctx: Context, topic: str) -> str:
    return ctx.chat(f"In one sentence: what is {topic}?", max_tokens=60).text


@agent(memory_mib=256)
def team(ctx: Context, topics: list[str]) -> dict[str, str]:
    notes = ctx.all(*(ctx.later.run(note, topic=topic) for topic in topics), timeout="1h")
    return dict(zip(topics, notes, strict=True))
