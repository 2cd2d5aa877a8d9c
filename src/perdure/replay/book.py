"""What the log has of a run, and whether what the function asks goes the same way. Pure.

A call is known by its lane, its *name* (what it is: ``step:draft``, ``signal:go``) and its occurrence: the how manieth
of that name in the lane. So its key is ``LANE/NAME/OCCURRENCE``, and code between two waits of a lane may be put in
another order. Waits are where order matters: they cut a lane's log into *stretches*. A stretch that the log has left
behind (it has the wait at its end) is to be asked whole, and nothing else in it, before that wait is asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

NAME_MAX = 80  # characters of a name in a key; of a longer one the beginning, and a digest
COMMITTED = "committed"  # the name of a line: there a turn's answer was whole
WAIT = "wait"
SET = "wait/set"  # many waits in one call: a wait as any other
CHAT = "chat"
EXACT = (CHAT, "message")  # their answers belong to exactly what was asked; others are known by their name alone
# Key, name, seq, hash of the request, answer or None. The first of a key is the call, one with an answer its end.
Line = list[Any]


class Mismatch(Exception):
    """The function asks for something else than its log has. ``recorded`` and ``asked`` are {kind, name, key, …}."""

    def __init__(self, recorded: dict[str, Any] | None, asked: dict[str, Any] | None) -> None:
        super().__init__(f"recorded: {recorded}, asked: {asked}")
        self.recorded = recorded
        self.asked = asked


class Recorded:
    """One call as the log has it. ``answer``: None while it has no end, or only the server knows it."""

    __slots__ = (
        "answer", "asked", "end", "is_heard", "is_withdrawn", "key", "kind", "name", "request", "seq", "stretch",
    )  # fmt: skip

    def __init__(self, key: str, kind: str, name: str, seq: int, request: str) -> None:
        self.key = key
        self.kind = kind
        self.name = name
        self.seq = seq
        self.request = request
        self.end = 0  # seq of its end
        self.answer: Any = None
        self.is_withdrawn = False  # a wait that its own program gave up
        self.stretch = 0
        self.asked = False
        self.is_heard = False  # the function has what the log has of it

    def told(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name, "seq": self.seq, "key": self.key}


class Asked:
    """One call as the function asks it: the key that it goes by, and what the log has under it."""

    __slots__ = ("lane", "ordinal", "recorded")

    def __init__(self, lane: str, ordinal: int, recorded: Recorded | None) -> None:
        self.lane = lane
        self.ordinal = ordinal
        self.recorded = recorded


class _Lane:
    """The calls of one lane: those of the log by stretch, and how far the function is."""

    def __init__(self) -> None:
        self.stretches: list[list[Recorded]] = [[]]
        self.left = [0]  # calls of each stretch that were not asked yet, without the wait at its end
        self.at = 0
        self.counts: dict[str, int] = {}  # occurrences asked, by name

    def add(self, call: Recorded) -> None:
        call.stretch = len(self.stretches) - 1
        self.stretches[-1].append(call)
        if call.kind == WAIT:
            self.stretches.append([])
            self.left.append(0)
        elif not call.is_withdrawn:
            self.left[-1] += 1

    def unasked(self) -> Recorded | None:
        """The first call that the log has and the function has passed over."""
        calls = (call for stretch in self.stretches[self.at :] for call in stretch)
        return next((call for call in calls if not call.asked and not call.is_withdrawn), None)


class Book:
    """The log of a run as its function goes through it once more. ``lines``: those of the call ``history``."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._calls: dict[str, Recorded] = {}
        self._lanes: dict[str, _Lane] = {}
        self._keys: dict[tuple[str, int], Asked] = {}
        self._quoted: dict[str, str] = {}
        for key, name, seq, request, answer in lines:
            call = self._calls.get(key)
            if call is None:
                kind = key.split("/")[-2].partition(":")[0]
                call = self._calls[key] = Recorded(key, kind, name, seq, request)
            if answer is not None:
                call.end, call.answer = seq, answer
                call.is_withdrawn = call.kind == WAIT and "withdrawn" in answer
            elif name == COMMITTED and call.kind == CHAT:
                call.end = seq
        for call in self._calls.values():
            self._lane(call.key.split("/")[0]).add(call)
        self._unheard = sum(not call.is_withdrawn for call in self._calls.values())

    def __len__(self) -> int:
        return len(self._calls)

    def _lane(self, name: str) -> _Lane:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane()
        return lane

    def ask(self, lane_name: str, ordinal: int, kind: str, name: str, request: str = "") -> Asked:
        """The call that the function asks now. ``ordinal``: the SDK's own, the same for the call and its end.
        ``request``: the hash of what is asked, where that is to be the same. Raises Mismatch."""
        if (known := self._keys.get((lane_name, ordinal))) is not None:
            return known
        lane, identity = self._lane(lane_name), self._identity(kind, name)
        count = lane.counts.get(identity, 0)
        lane.counts[identity] = count + 1
        where = f"{lane_name}/{identity}"
        call = self._calls.get(f"{where}/{count}")
        told = {"kind": kind, "name": name, "key": f"{where}/{count}"}
        is_wait = kind == WAIT
        if call is None:
            if lane.at < len(lane.stretches) - 1 or (is_wait and lane.left[lane.at]):
                raise Mismatch(_told(lane.unasked()), told)
        else:
            if call.stretch != lane.at or (is_wait and lane.left[lane.at]):
                raise Mismatch(_told(lane.unasked()), told)
            if request and call.request and call.request != request:
                raise Mismatch({**call.told(), "hash": call.request}, {**told, "hash": request})
            self._pass(lane, call)
        asked = self._keys[lane_name, ordinal] = Asked(where, count, call)
        return asked

    def _pass(self, lane: _Lane, call: Recorded) -> None:
        call.asked = True
        if call.kind == WAIT:
            lane.at += 1
        elif not call.is_withdrawn:
            lane.left[lane.at] -= 1

    @property
    def is_heard(self) -> bool:
        """Nothing that the log has is new to the function: from here on it lives."""
        return not self._unheard

    def hear(self, call: Recorded) -> None:
        """The function gets what the log has of this call now."""
        if not call.is_heard and not call.is_withdrawn:
            call.is_heard = True
            self._unheard -= 1

    def key(self, lane_name: str, ordinal: int) -> str:
        """The key on this road of a call that was asked before."""
        asked = self._keys[lane_name, ordinal]
        return f"{asked.lane}/{asked.ordinal}"

    def end(self) -> None:
        """The function has ended: whatever the log has is to have been asked. Raises Mismatch."""
        for call in self._unasked():
            raise Mismatch(call.told(), None)

    def _unasked(self) -> Iterator[Recorded]:
        found = (lane.unasked() for lane in self._lanes.values())
        yield from sorted((call for call in found if call is not None), key=lambda call: call.seq)

    def _identity(self, kind: str, name: str) -> str:
        """What a call is called in its key."""
        whole = f"{kind}:{name}" if name else kind
        quoted = self._quoted.get(whole)
        if quoted is None:
            quoted = quote(whole, safe=":")
            if len(quoted) > NAME_MAX:
                quoted = f"{quoted[:NAME_MAX]}~{hashlib.sha256(whole.encode()).hexdigest()[:12]}"
            self._quoted[whole] = quoted
        return quoted


def _told(call: Recorded | None) -> dict[str, Any] | None:
    return call.told() if call else None


def _awaited(wait: dict[str, Any]) -> str:
    kind = str(wait.get("kind", ""))
    what = next((wait[name] for name in ("name", "prompt", "function", "run") if wait.get(name)), "")
    return f"{kind}:{what}" if what else kind


def named(path: str, body: dict[str, Any]) -> tuple[str, str]:
    """Kind and name of a call of the runs API, by its path and body."""
    if path == WAIT:
        return WAIT, _awaited(body)
    if path == SET:
        return WAIT, f"{body.get('mode', '')}:{'+'.join(_awaited(wait) for wait in body.get('waits', ()))}"
    if path == "value":
        return path, str(body.get("of", ""))
    if path == "fork":
        return path, str(body.get("count", 1))
    return path, str(body.get("name", ""))
