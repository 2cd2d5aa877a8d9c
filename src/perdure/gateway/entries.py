"""The entries of turns (docs/formats/agent-calls.md): made, and found again. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perdure.context.log import NewEntry, request_hash
from perdure.gateway.asked import Asked
from perdure.gateway.dialects.dialect import Summary
from perdure.gateway.prices import Bill
from perdure.model import Call, Entry

TEXT_SHOWN = 200  # characters of an answer that its entry repeats, for readers of the log
LOST = "stream-lost"  # what a program is told that has a part of an answer which died with a server
ENDED = "the server ended before the answer was complete"


def intent(asked: Asked) -> NewEntry:
    request = asked.request
    payload = {
        "request": request_hash(asked.call),
        "dialect": asked.dialect.name,
        "model": asked.model,
        "stream": request.is_stream,
        "messages": request.messages,
        "parameters": request.parameters,
    }
    if not asked.dialect.is_known:
        payload["path"] = asked.call.path
    return NewEntry(kind="model.intent", payload=payload, key=asked.call.key)


def started(call: Call, provider: str, attempt: int, after: str, waited_s: float = 0.0) -> NewEntry:
    payload = {"provider": provider, "attempt": attempt} | ({"after": after} if after else {})
    if (waited := round(waited_s, 3)) > 0:
        payload["waited_s"] = waited
    return NewEntry(kind="model.started", payload=payload, key=call.key)


def committed(
    call: Call, provider: str, answer: Mapping[str, Any], size: int, summary: Summary, bill: Bill, s: float
) -> NewEntry:
    """size: of its body, in bytes. s: seconds from the question to the end."""
    payload = {
        **answer,
        "bytes": size,
        "provider": provider,
        "model": summary.model,
        **bill.payload(),
        "seconds": round(s, 3),
        "text": summary.text[:TEXT_SHOWN],
        "stop_reason": summary.stop_reason,
        "tool_calls": list(summary.tool_calls),
    }
    return NewEntry(kind="model.committed", payload=payload, key=call.key)


def aborted(
    call: Call,
    reason: str,
    status: int = 0,
    received: int = 0,
    answer: Mapping[str, Any] | None = None,
    summary: Summary | None = None,
    bill: Bill | None = None,
    is_asked: bool = True,
) -> NewEntry:
    """answer: what the program was told instead. summary, bill: of what came before it broke off. is_asked: by us, of
    a provider."""
    payload: dict[str, Any] = {"reason": reason, "bytes": received, "status": status}
    if not is_asked:
        payload["unasked"] = True
    if answer is not None:
        payload["answer"] = answer
    if summary is not None and bill is not None:
        payload |= {"model": summary.model, **bill.payload(), "text": summary.text[:TEXT_SHOWN]}
    return NewEntry(kind="model.aborted", payload=payload, key=call.key)


def lost(call: Call) -> NewEntry:
    """The program has a part of an answer of which nothing else is left; it is told, and asks again if it can."""
    entry = aborted(call, f"{ENDED}: its program has {call.offset} bytes of it, and is told {LOST}", 0, call.offset)
    return NewEntry(kind=entry.kind, payload={**entry.payload, "told": LOST}, key=entry.key)


def replayed(call: Call, seq: int) -> NewEntry:
    return NewEntry(kind="model.replayed", payload={"seq": seq}, key=call.key)


def newest_epoch(entries: list[Entry]) -> int:
    """The newest epoch that asked. Commits do not count: they are written in whatever epoch the run then was."""
    return max((entry.epoch for entry in entries if entry.kind in ("model.started", "model.replayed")), default=0)


def last(entries: list[Entry], kind: str) -> Entry | None:
    return next((entry for entry in reversed(entries) if entry.kind == kind), None)


def newest(entries: list[Entry]) -> Entry | None:
    """The newest that says what became of a call. Who asked again while it ended may have written so behind its end."""
    return next((entry for entry in reversed(entries) if entry.kind != "model.replayed"), None)


def told(entries: list[Entry]) -> dict[str, Any] | None:
    """The answer that a program got instead of a turn, where that was the call's end."""
    end = newest(entries)
    return end.payload.get("answer") if end is not None and end.kind == "model.aborted" else None
