"""The SDKs of OpenAI and Anthropic, as they are, in a microVM: one model writes, another one edits.

printf 'FROM python:3.12-slim\nRUN pip install openai anthropic\n' | fcrun build -t sdks -
perdure run --image sdks -e TOPIC=owls -- python3 -c "$(cat examples/sdks.py)"

Nothing in here knows of Perdure: base URLs and keys are in the environment of every machine. Its turns are in the log
(`perdure show RUN`), and while a model thinks, also in the middle of an answer, the machine sleeps (`--think-grace`).
"""

from __future__ import annotations

import os

import anthropic
import openai


def write(topic: str) -> str:
    question = f"Write three sentences about {topic}."
    said = ""
    stream = openai.OpenAI().chat.completions.create(
        model="gpt-5.4-mini", messages=[{"role": "user", "content": question}], stream=True
    )
    for chunk in stream:
        for choice in chunk.choices:
            said += choice.delta.content or ""
            print(choice.delta.content or "", end="", flush=True)
    print()
    return said


def edit(draft: str) -> None:
    question = f"Say this in one sentence: {draft}"
    with anthropic.Anthropic().messages.stream(
        model="claude-sonnet-5", max_tokens=300, messages=[{"role": "user", "content": question}]
    ) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
    print()


edit(write(os.environ.get("TOPIC", "owls")))
