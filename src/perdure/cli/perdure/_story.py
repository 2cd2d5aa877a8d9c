"""A run's context log as people read it: one line per entry, time, who, what, cost. Pure; ``show`` and ``run`` use it.

Columns: time (8), who (8), what, cost (right). A wait, or a sleep in a snapshot, is a gap with its length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from textwrap import wrap
from typing import Any

from perdure.cli.perdure._words import clock, dollars, duration, shorten, size, value
from perdure.errors import in_words
from perdure.model import Entry, NodePlace

WIDTH = 100
LONG_S = 1.0  # a wait for a provider that is worth a line
_COST = 22  # columns of the cost

_LONGER = frozenset(("replayed", "run.running", "run.starting"))  # with more lines below

Line = tuple[str, str, str]  # who, what, cost


class Story:
    """Turns entries, given in order, into lines."""

    def __init__(self, width: int = WIDTH, *, has_machine: bool = True) -> None:
        self._width = width
        self._day = ""
        self._waits: dict[str, float] = {}
        self._slept_since: float | None = None
        self._stored = 0
        self._asked: dict[str, int] = {}
        self._has_machine = has_machine  # not on the replay road, which a run's first entry says

    def lines(self, entry: Entry) -> Iterator[str]:
        """The lines of one entry; none for what only machines care about."""
        payload = entry.payload if isinstance(entry.payload, dict) else {}
        told = _TELLERS.get(entry.kind, _other)(self, entry, payload)
        if told is None:
            return
        if (day := clock(entry.time, day=True)[:10]) != self._day:
            self._day = day
            yield f"-- {day} --"
        if entry.kind in ("run.resuming", "run.recovering") and self._slept_since is not None:
            yield self._gap(entry.time - self._slept_since)
            self._slept_since = None
        yield self._line(clock(entry.time), *told)
        more_told = _details(payload) if entry.kind == "replayed" else _whereabouts(payload)
        for more in more_told if entry.kind in _LONGER else ():
            yield from (self._line(" " * 8, "", part, "") for part in wrap(more, self._width - 20, max_lines=8) or [""])

    def _gap(self, seconds: float) -> str:
        stored = f", {size(self._stored)} stored" if self._stored else ""
        return f"{'':8}  {'':8}  ~~~ asleep for {duration(seconds)}: no {self._body}{stored} ~~~"

    @property
    def _body(self) -> str:
        return "machine" if self._has_machine else "process"

    def _line(self, moment: str, who: str, what: str, cost: str) -> str:
        room = self._width - 20 - (len(cost) + 2 if cost else 0)
        text = f"{moment}  {shorten(who, 8):<8}  {shorten(what, room):<{room if cost else 0}}"
        return f"{text}  {cost}" if cost else text.rstrip()

    # -- who did what ---------------------------------------------------------------------------------------------

    def state(self, entry: Entry, payload: dict[str, Any]) -> Line | None:
        name = entry.kind.removeprefix("run.")
        cause = _cause(payload)
        if name == "queued":
            self._has_machine = _dict(payload.get("request")).get("durability") != "replay"
        if payload.get("from"):  # a recovery, or a fork
            return "run", _beginning(payload, self._has_machine), f"epoch {entry.epoch}"
        if name == "running" and (payload.get("node") or payload.get("store")):
            return "run", "goes on from the snapshot that it slept in", f"epoch {entry.epoch}"
        if name in ("waiting", "suspending", "resuming") or (name == "running" and not cause):
            return None if name != "resuming" else ("run", "waking up", "")
        if name == "suspended":
            self._slept_since = entry.time
            return "run", f"suspended: the {self._body} is gone", size(self._stored) if self._stored else ""
        if name == "recovering":
            self._slept_since = None
            return "run", f"recovering: {cause or f'the {self._body} was lost'}", ""
        if name == "completed":
            return "run", f"completed: {value(payload.get('result'), self._width)}", ""
        if name == "failed":
            return "run", f"failed: {in_words(_dict(payload.get('error'))) or cause}", ""
        return "run", name + (f": {cause}" if cause else ""), f"epoch {entry.epoch}" if name == "starting" else ""

    def tagged(self, entry: Entry, payload: dict[str, Any]) -> Line | None:
        tags = _dict(payload.get("tags"))
        told = [f"{name}={text}" if text is not None else f"without {name}" for name, text in tags.items()]
        return "outside", "tags: " + ", ".join(told) if told else "metadata was replaced", ""

    def budget(self, entry: Entry, payload: dict[str, Any]) -> Line | None:
        limits = {name: limit for name, limit in _dict(payload.get("budget")).items() if limit}
        told = ", ".join(f"{name}={limit:,}" for name, limit in limits.items() if isinstance(limit, int | float))
        return "outside", f"may spend {told or 'as much as it likes'}", ""

    def secret(self, entry: Entry, payload: dict[str, Any]) -> Line | None:
        return "agent", f"asks {payload.get('secret')}: {payload.get('method')} {payload.get('path') or '/'}", ""

    def ending(self, entry: Entry, payload: dict[str, Any]) -> Line | None:
        if entry.kind == "ending.told":
            return "run", "the program was told that it is to end", ""
        return "outside", f"is to end: {_dict(payload.get('error')).get('message', '')}", ""

    def model(self, entry: Entry, payload: dict[str, Any]) -> Line | None:
        key = entry.key or ""
        if entry.kind == "model.intent":
            return "agent", f"asks: {value(_said(payload), self._width)}", ""
        if entry.kind == "model.started":
            self._asked[key] = self._asked.get(key, 0) + 1
            times = self._asked[key]
            if times > 1:
                return "model", f"asked again, {payload.get('after') or 'after a loss'}", ""
            waited_s = _number(payload.get("waited_s"))
            return ("model", "asked when its turn came", duration(waited_s)) if waited_s >= LONG_S else None
        if entry.kind == "model.aborted":
            return "model", f"no answer: {payload.get('reason', '')}", ""
        if entry.kind == "model.replayed":
            return "model", "answered again from the log, not asked", "0 tokens"
        usage = _dict(payload.get("usage"))
        read = usage.get("input_tokens", usage.get("prompt_tokens"))  # the names of before
        said = usage.get("output_tokens", usage.get("completion_tokens"))
        spent = f"{'~' * bool(payload.get('estimated'))}{_number(read):.0f}+{_number(said):.0f} tokens"
        if isinstance(cost := payload.get("cost_usd"), int | float):
            spent += f"  {dollars(cost)}"
        text = str(payload.get("text") or "") or _used(payload)
        return "model", text, f"{spent}  {duration(_number(payload.get('seconds')))}"

    def wait(self, entry: Entry, payload: dict[str, Any]) -> Line | None:
        if entry.kind == "wait.started":
            wait = _dict(payload.get("wait"))
            self._waits[str(wait.get("id"))] = entry.time
            return "agent", _waiting(wait, payload.get("parts")), ""
        since = self._waits.pop(str(payload.get("wait")), None)  # None: it began before what is told here
        waited = f"after {duration(entry.time - since)}" if since is not None and "of" not in payload else ""
        if payload.get("kind") in ("all", "any") and payload.get("outcome") == "completed":
            return "run", f"{payload['kind']} of them: that is it", waited
        if payload.get("outcome") == "timed-out":
            return "clock", "nothing came in time", waited
        if payload.get("outcome") == "withdrawn":
            return "agent", "does not wait any more", waited
        if payload.get("outcome") == "cancelled":
            return "run", "the wait ends with its run", waited
        found = payload.get("value")
        if payload.get("kind") in ("approval", "doubt") and isinstance(found, dict):
            verdict = "approved" if found.get("approved") else "denied"
            comment = found.get("comment")
            return str(payload.get("by") or "person"), verdict + (f": {comment}" if comment else ""), waited
        if payload.get("kind") in ("child", "fork"):
            failed = _dict(found).get("error")
            said = f"failed: {in_words(_dict(failed))}" if failed else value(_dict(found).get("result"), 60)
            return str(payload["kind"]), f"run {_dict(found).get('run_id', '')}: {said}", waited
        if payload.get("kind") == "time":
            return "clock", "it is time", waited
        return "run", "the signal was taken", waited

    def step(self, entry: Entry, payload: dict[str, Any]) -> Line | None:
        name = payload.get("name", "")
        if entry.kind == "step.intent":
            attempt = int(_number(payload.get("attempt")))
            return ("agent", f"step {name}, attempt {attempt}", "") if attempt > 1 else None
        if "error" in payload:
            error = _dict(payload["error"])
            return "step", f"{name} failed: {error.get('type', '')}: {error.get('message', '')}", ""
        return "step", f"{name} = {value(payload.get('result'), self._width)}", ""

    def signal(self, entry: Entry, payload: dict[str, Any]) -> Line:
        told = _dict(payload.get("signal"))
        text = "" if told.get("value") is None else f" = {value(told['value'], self._width)}"
        return "outside", f"signal {told.get('name', '')}{text}", ""

    def emit(self, entry: Entry, payload: dict[str, Any]) -> Line:
        return "agent", f"{payload.get('name', '')}: {value(payload.get('value'), self._width)}", ""

    def value(self, entry: Entry, payload: dict[str, Any]) -> Line:
        return "agent", f"{payload.get('of', '')} = {payload.get('value')}", ""

    def message(self, entry: Entry, payload: dict[str, Any]) -> Line:
        message = _dict(payload.get("message"))
        return str(message.get("role", "message")), value(message.get("content"), self._width), ""

    def snapshot(self, entry: Entry, payload: dict[str, Any]) -> Line:
        info = _dict(payload.get("snapshot"))
        self._stored = int(sum(_number(info.get(name)) for name in ("memory_bytes", "disk_bytes", "state_bytes")))
        took = _number(info.get("total_s"))
        text = ("checkpoint" if payload.get("checkpoint") else "snapshot") + (f", in {duration(took)}" if took else "")
        return "machine", text, size(self._stored)

    def replayed(self, entry: Entry, payload: dict[str, Any]) -> Line:
        counts = {name: int(_number(payload.get(name))) for name in ("turns", "steps", "waits", "others")}
        answered = ", ".join(f"{n} {name if n > 1 else name[:-1]}" for name, n in counts.items() if n) or "nothing"
        return "log", f"answered since: {answered}", ""

    def forks(self, entry: Entry, payload: dict[str, Any]) -> Line | None:
        runs, number = payload.get("forks"), payload.get("number")
        made = [str(run) for run in runs] if isinstance(runs, list) else []
        if number:
            return "run", f"it is fork {number} of {len(made)}", ""
        return "agent", f"forks itself: {', '.join(made)}", ""

    def forked(self, entry: Entry, payload: dict[str, Any]) -> Line | None:
        if payload.get("carried"):  # by another attempt: only what is open has to know
            return None
        if entry.kind == "forked":
            return "run", f"forked from run {payload.get('run')} at entry {payload.get('at')}", ""
        if entry.kind == "rewound":
            return "run", f"rewound to entry {payload.get('at')}, from {payload.get('from')}", ""
        at = payload.get("at") or _dict(payload.get("recorded")).get("seq")
        where = f" at entry {at}" if at else ""  # it asks for more than the log has, where there is none
        return "run", f"went another way than the log{where}: policy {payload.get('policy')}", ""


def _said(payload: dict[str, Any]) -> Any:
    """What a model is asked: the last message, in the words of whichever API; else what of its provider."""
    messages = payload.get("messages")
    if not isinstance(messages, list) or not messages:
        return payload.get("path") or ""
    last = _dict(messages[-1])
    return _words(last.get("content") or last.get("output")) or ""  # output: of a function, in responses


def _words(content: Any) -> Any:
    """The text of content that comes in parts; what else is in it stays as it is where there is none."""
    if not isinstance(content, list):
        return content
    parts = [_dict(part).get("text") or _words(_dict(part).get("content")) for part in content]
    return " ".join(part for part in parts if isinstance(part, str)) or content


def _used(payload: dict[str, Any]) -> str:
    """The tools that a model calls instead of saying anything."""
    calls = payload.get("tool_calls")
    names = [str(_dict(call).get("name", "")) for call in calls] if isinstance(calls, list) else []
    return f"calls {', '.join(names)}" if names else ""


def _waiting(wait: dict[str, Any], parts: Any) -> str:
    kind, name = wait.get("kind"), wait.get("name", "")
    if kind in ("all", "any"):
        waits = [_dict(part) for part in parts] if isinstance(parts, list) else []
        return f"waits for {kind} of {len(waits)}: " + ", ".join(_waiting(part, None) for part in waits)
    if kind == "child":
        return f"runs {name} as run {wait.get('child', '')}"
    if kind == "fork":
        return f"waits for its fork {wait.get('run', '')}"
    if kind == "time":
        until, since = _number(wait.get("until")), _number(wait.get("since"))
        length = f" for {duration(until - since)}" if until and since else ""
        return f"sleeps until {clock(until, day=True)}" if wait.get("absolute") else f"sleeps{length}"
    return f"waits for the signal {name!r}" if kind == "signal" else f"asks for approval: {name}"


def _details(payload: dict[str, Any]) -> Iterator[str]:
    """Which calls a recovery had from the log, and which it had not."""
    answered = list(map(_dict, payload.get("answered") or ()))
    if answered:
        yield "which: " + ", ".join(f"{_call(one)} (entry {one.get('seq')})" for one in answered)
    for one in map(_dict, payload.get("again") or ()):
        yield f"no answer for {_call(one)}: {one.get('why')}"


def _whereabouts(payload: dict[str, Any]) -> Iterator[str]:
    """Where a machine goes on now that was elsewhere, and from which of its snapshots not."""
    if isinstance(payload.get("node"), dict):
        yield f"at {_node(payload['node'])}; it was at {_node(payload.get('node_before'))}"
    if payload.get("store"):
        yield f"from the copy of the snapshot in {payload['store']}"
    passed = payload.get("passed")
    for one in map(_dict, passed if isinstance(passed, list) else ()):
        yield f"the snapshot of entry {one.get('seq')} is passed over: {one.get('why')}"


def _node(told: Any) -> str:
    of = _dict(told)
    return NodePlace(**{name: str(of.get(name, "")) for name in NodePlace.__struct_fields__}).said


def _call(one: dict[str, Any]) -> str:
    return f"{one.get('call')} {one.get('name') or one.get('key')}"


def _beginning(payload: dict[str, Any], has_machine: bool) -> str:
    if payload["from"] == "start":
        left = "no snapshot on its way is at hand" if payload.get("passed") else "no snapshot is left on its way"
        why = left if has_machine else "the log answers what it has"
        return f"begins again: {why}"
    return f"goes on from the snapshot of entry {payload.get('seq')} ({str(payload['from'])[7:19]})"


def _cause(payload: dict[str, Any]) -> str:
    cause, detail = payload.get("cause") or payload.get("reason") or "", payload.get("detail")
    return f"{cause} ({detail})" if cause and detail else str(cause)


def _dict(found: Any) -> dict[str, Any]:
    """What a newer server may write otherwise is told as nothing, never as a crash."""
    return found if isinstance(found, dict) else {}


def _number(found: Any) -> float:
    return found if isinstance(found, int | float) else 0.0


def _other(story: Story, entry: Entry, payload: dict[str, Any]) -> Line | None:
    if "snapshot_lost" in payload:
        why = _dict(payload.get("error")).get("message", "")
        return "machine", f"the snapshot of entry {payload.get('seq')} cannot be used: {why}", ""
    return None if entry.kind in ("note", "overruled") else ("log", f"{entry.kind} {value(entry.payload, WIDTH)}", "")


_TELLERS: dict[str, Callable[[Story, Entry, dict[str, Any]], Line | None]] = {
    **dict.fromkeys(
        [
            f"run.{name}"
            for name in (
                "queued", "starting", "running", "waiting", "suspending", "suspended", "resuming", "recovering",
                "completed", "failed", "cancelled",
            )
        ],
        Story.state,
    ),
    "tagged": Story.tagged,
    "budget": Story.budget,
    "secret.used": Story.secret,
    "ending": Story.ending,
    "ending.told": Story.ending,
    "model.intent": Story.model,
    "model.started": Story.model,
    "model.committed": Story.model,
    "model.aborted": Story.model,
    "model.replayed": Story.model,
    "wait.started": Story.wait,
    "wait.completed": Story.wait,
    "step.intent": Story.step,
    "step.result": Story.step,
    "signal": Story.signal,
    "emit": Story.emit,
    "value": Story.value,
    "message": Story.message,
    "snapshot": Story.snapshot,
    "fork": Story.forks,
    "forked": Story.forked,
    "rewound": Story.forked,
    "replayed": Story.replayed,
    "diverged": Story.forked,
}  # fmt: skip
