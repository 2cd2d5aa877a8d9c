"""What the programs of the small machines (``perdure.testing.machines``) ask for most."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from perdure.testing.machines import CHAT, Ask

Steps = Generator[Any, Any, Any]  # a program that runs


def approval(prompt: str = "Publish?", **more: Any) -> Ask:
    return Ask("wait", {"kind": "approval", "prompt": prompt, **more})


def chat(text: str, **more: Any) -> Ask:
    return Ask(CHAT, {"messages": [{"role": "user", "content": text}], **more})


def works() -> Steps:
    """Until the signal ``go`` comes."""
    yield Ask("wait", {"kind": "signal", "name": "go"})
    yield Ask("complete", {"result": 1})
