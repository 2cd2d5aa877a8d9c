"""What the server refuses it says by the names of its fields; here they are those of options. Pure."""

from __future__ import annotations

import re

FIELDS = {
    "active_timeout_s": "--active-timeout",
    "catch_up_max": "--catch-up",
    "checkpoint_s": "--checkpoint",
    "checkpoint_turns": "--checkpoint",
    "clean_up_s": "--clean-up",
    "delay_s": "its pause",
    "disk_mib": "--disk",
    "every_s": "--every",
    "idle_grace_s": "--idle-grace",
    "jitter_s": "--jitter",
    "key_concurrency": "--key-concurrency",
    "key_scope": "--key-scope",
    "key_ttl_s": "--key-ttl",
    "memory_mib": "--memory",
    "older_than_s": "--older-than",
    "on_divergence": "--on-divergence",
    "period_s": "the time of --rate",
    "queue_key": "--queue-key",
    "think_grace_s": "--think-grace",
    "timeout_s": "--timeout",
    "vcpus": "--cpus",
}
# Fields whose names are words: such a one is the field at the beginning of a message, or in quotes in a hint.
WORDS = ("concurrency", "cron", "durability", "input", "key", "metadata", "priority", "queue", "rate", "retry")

_field = re.compile(rf"\b({'|'.join(FIELDS)})\b(=)?")
_first = re.compile(rf"^(policy: )?({'|'.join(WORDS)})( is | has |: |=| ')", re.MULTILINE)
_quoted = re.compile(rf"\"({'|'.join(WORDS)})\"")


def reword(text: str) -> str:
    """A message and its hint, with the names of options."""
    text = text.removeprefix("policy: ")
    text = _field.sub(lambda found: FIELDS[found[1]] + (" " if found[2] else ""), text)
    text = _first.sub(lambda found: f"--{found[2]}" + (" " if found[3] == "=" else found[3]), text)
    return _quoted.sub(r"--\1", text).replace("or null for no limit", "or 'none' for no limit")
