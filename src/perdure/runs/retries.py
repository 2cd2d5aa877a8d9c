"""Another attempt of a run that failed: which failures, when, and what the new attempt has of the log. Pure, but for
the ids of children that are started again.

An attempt begins from the start, in a new machine, and its calls answer from the log: nothing that succeeded is done or
paid again. What failed is not in its branch: a step that raised, a model call that was refused, a child that failed, a
wait that ended with its run. So those are asked anew. A set that waited for all of several is carried over open: its
children that failed, or ended with it, are other runs then, and what has come in it is not waited for again. One for
any of several has one answer: that is carried over, or it failed, and all of it is asked anew.
"""

from __future__ import annotations

import hashlib
from typing import Any

from perdure.context.log import NewEntry
from perdure.model import ANY_FAILURE, FAILURES, Entry, Retry, new_id
from perdure.runs.waits import SHIFTS, Waits

_NEVER = ("agent-invalid", "diverged", "version-mismatch")  # of any kind: the next attempt would be no other
_UNCARRIED = ("model.started", "model.replayed", "ending.told")


def pause_s(policies: dict[str, Retry], kind: str, code: str, run_id: str, attempt: int) -> float | None:
    """How long to wait after attempt number ``attempt`` failed; None: it was the last one."""
    policy = policies.get(kind) or policies.get(ANY_FAILURE)
    if kind not in FAILURES or policy is None or code in _NEVER or attempt >= policy.attempts:
        return None
    pause = min(policy.delay_s * policy.factor ** min(attempt - 1, 1000), policy.max_delay_s)
    # Drawn from what it is for, so that it is the same whoever computes it.
    drawn = int.from_bytes(hashlib.sha256(f"{run_id}/{attempt}".encode()).digest()[:8], "big") / 2**64
    return pause * (1 + policy.jitter * drawn)


def _failed(entry: Entry) -> bool:
    """Whether the call of this entry is to be asked anew."""
    payload = entry.payload if isinstance(entry.payload, dict) else {}
    if entry.kind == "step.result":
        return "error" in payload
    if entry.kind == "wait.completed":
        return payload.get("outcome") == "cancelled" or (payload.get("kind") == "child" and _has_error(payload))
    return entry.kind == "ending.told" or (entry.kind == "model.aborted" and "answer" in payload)


def _has_error(payload: dict[str, Any]) -> bool:
    told = payload.get("value")
    return isinstance(told, dict) and "error" in told


def _reopened(entry: Entry, again: set[str], begins: float) -> list[NewEntry]:
    """What is carried over of an entry of a set in which the waits ``again`` are to be waited for once more. Its own
    time limit is counted from ``begins``."""
    payload = entry.payload
    if entry.kind == "wait.started":
        parts = [{**part, "child": new_id()} if part["id"] in again else part for part in payload["parts"]]
        wait, until = payload["wait"], payload["wait"].get("until")
        if until is not None:
            wait = {**wait, "since": begins, "until": begins + until - wait["since"]}
        payload = {**payload, "wait": wait, "parts": parts}
    elif not payload.get("of") or payload["wait"] in again:
        return []  # the end of such a wait, or of the set
    return [NewEntry(kind=entry.kind, payload=payload, key=entry.key)]


def _shift_s(entry: Entry) -> float:
    """How much longer what is open has from here on."""
    return float(entry.payload.get("shift_s", 0.0)) if entry.kind in SHIFTS else 0.0


def carried_shift(entry: Entry) -> NewEntry:
    """A copy of where time stood still, for another branch. Without the key that a rewind was asked for with: that one
    is of the run that went back, and this may be a fork of it."""
    return NewEntry(kind=entry.kind, payload={**entry.payload, "carried": True})


class Carried:
    """What a new attempt has of an old one. Feed it the branch's entries in order, then ask."""

    def __init__(self, *, whole_lanes: bool, by_name: bool = False) -> None:
        """whole_lanes: what a lane did after something that failed is asked anew, too (it may not go another way).
        by_name: keys are those of the replay road."""
        self._by_name = by_name
        self._whole_lanes = whole_lanes
        self._first: dict[str, int] = {}  # key -> its first entry
        self._failed: set[str] = set()
        self._children: dict[str, set[str]] = {}  # by key of a set of all: its waits for children that are open
        self._again: dict[str, set[str]] = {}  # by key of such a set: its waits for those that failed, or ended with it
        self._entries: list[Entry] = []

    def feed(self, entry: Entry) -> None:
        self._entries.append(entry)
        if entry.key and entry.kind not in SHIFTS:
            self._first.setdefault(entry.key, entry.seq)
            if entry.kind == "wait.started" and entry.payload["wait"]["kind"] == "all":
                self._children[entry.key] = {part["id"] for part in entry.payload["parts"] if part.get("child")}
            if entry.kind == "wait.completed" and entry.key in self._children:
                self._end(entry.key, entry)
            elif _failed(entry):
                self._failed.add(entry.key)

    def _end(self, key: str, entry: Entry) -> None:
        """A set of all has ended, or a part of it has."""
        payload, left = entry.payload, self._children[key]
        if payload.get("of"):
            left.discard(payload["wait"])
            if _failed(entry):
                self._again.setdefault(key, set()).add(payload["wait"])
        elif _failed(entry) or key in self._again:
            self._again.setdefault(key, set()).update(left)

    def _lane(self, key: str) -> str:
        return key.partition("/")[0] if self._by_name else key.rpartition("/")[0]

    def fork(self, begins: float = 0.0) -> tuple[int, Waits, list[NewEntry]] | None:
        """(seq to fork after, the waits there, what is carried over from behind it); None: nothing failed in it.
        begins: when the attempt does."""
        anew = self._failed | self._again.keys()
        if not anew:
            return None
        failed = self._failed
        if self._whole_lanes:
            begun: dict[str, int] = {}  # lane -> the entry that the new attempt goes another way at
            for key in anew:
                lane, seq = self._lane(key), self._first[key]
                begun[lane] = min(begun.get(lane, seq), seq)
            after = {key for key, seq in self._first.items() if seq >= begun.get(self._lane(key), seq + 1)}
            # a set that is the first of them in its lane is asked for as it was
            failed = after - {key for key in self._again if self._first[key] == begun[self._lane(key)]} | failed
        fork_seq, waits, carried = min(self._first[key] for key in anew) - 1, Waits(), list[NewEntry]()
        # A set that is reopened has its own time from when the attempt begins, whatever shifts after it add to that.
        left_s = sum(_shift_s(entry) for entry in self._entries if entry.seq > fork_seq)
        for entry in self._entries:
            if entry.seq <= fork_seq:
                waits = waits.after(entry.kind, entry.payload)
            elif entry.kind in SHIFTS:  # what was open then has longer than it had, and keeps that
                left_s -= _shift_s(entry)
                carried.append(carried_shift(entry))
            elif entry.key in self._again and entry.key not in failed:
                carried += _reopened(entry, self._again[entry.key], begins - left_s)
            elif entry.kind == "signal" or (entry.key and entry.key not in failed and entry.kind not in _UNCARRIED):
                carried.append(NewEntry(kind=entry.kind, payload=entry.payload, key=entry.key, is_copy=True))
        return fork_seq, waits, carried


def told(kind: str, attempt: int, error: dict[str, Any]) -> dict[str, Any]:
    """What the log says of it."""
    detail = f"attempt {attempt} is next, after {kind}: {error.get('message', '')}"
    return {"cause": "retry", "detail": detail, "attempt": attempt, "error": error}
