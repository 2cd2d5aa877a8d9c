"""Making a thread of LangGraph's smaller: some checkpoints stay, the others are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from perdure.client.sessions import SessionsClient
from perdure.errors import LogConflict, NotFound
from perdure.integrations.keys import joined

TRIES = 20  # while others write to it

Place = tuple[str, str]  # of a checkpoint: its namespace and id
Keys = set[str | None]


def keep(
    sessions: SessionsClient,
    name: str,
    is_kept: Callable[[Place], bool],
    loads: Callable[[dict[str, Any]], Mapping[str, Any]],
) -> None:
    """Only these checkpoints stay in the session ``name``, with what was written above them and the values that they
    have. loads: gives the checkpoint of an entry's payload. ``LogConflict``: it is written to all the time."""
    for _ in range(TRIES):
        keys, seqs = Keys(), list[int]()
        try:
            session = sessions.get(name)  # what comes after it makes a conflict below
            for kind in ("latest", "checkpoint"):
                for entry in sessions.entries(name, kind=kind):
                    if is_kept((entry.payload["ns"], entry.payload["id"])):
                        seqs.append(entry.seq)
                        keys |= _keys(entry.payload, loads(entry.payload)) if kind == "checkpoint" else set()
            others = [entry for entry in sessions.entries(name, compact=True) if entry.key in keys]
        except NotFound:
            return
        seqs += [entry.seq for entry in others if entry.kind in ("channel", "writes")]
        try:
            sessions.keep(name, seqs, expected_seq=session.seq)
            return
        except LogConflict:
            continue  # somebody wrote to it: look again
    raise LogConflict(f"session {name!r} is written to all the time", hint="Try again when its graph rests.")


def _keys(payload: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Keys:
    """Of the values that a checkpoint has, and of what was written above it."""
    values = {joined("channel", payload["ns"], *version) for version in checkpoint["channel_versions"].items()}
    return {*values, joined("writes", payload["ns"], payload["id"])}
