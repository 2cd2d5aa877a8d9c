"""Steps: an intent before an effect, a result after it. Between the two a crash leaves the effect in doubt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from perdure.context.log import NewEntry, canonical, digest_of, request_hash
from perdure.errors import Conflict, InvalidValue
from perdure.model import Entry, Frozen, new_id
from perdure.runs import parking
from perdure.runs.asked import Asked, Body, last
from perdure.runs.ending import told
from perdure.runs.waits import Wait

DOUBTS = ("retry", "ask", "fail")


class Step(Frozen, frozen=True, kw_only=True):
    """Body of ``/perdure/v1/step``."""

    name: str
    on_doubt: str = "ask"
    of: str = ""  # the key of its first attempt; its error is recorded, and this is another one
    args: Any = None  # what it is called with: part of what is asked, as its hash is


async def begin(asked: Asked) -> Body:
    """What the guest is to do: run it, or take what is recorded. Waits for a person where that is the policy."""
    step = asked.convert(Step)
    if step.on_doubt not in DOUBTS:
        raise InvalidValue(f"on_doubt is {step.on_doubt!r}", hint=f"It is one of {', '.join(DOUBTS)}.")
    while True:
        answer = await asked.warm(lambda: _answer(asked, step))
        if not isinstance(answer, Wait):
            return answer
        await parking.park(asked, answer)


async def _answer(asked: Asked, step: Step) -> Body | Wait:
    entries = await asked.known()
    result = last(entries, "step.result")
    if result:
        return recorded(result)
    intents = [entry for entry in entries if entry.kind == "step.intent"]
    attempt = len(intents)
    if not intents or _epoch(intents[-1]) != asked.call.epoch:
        # A machine that was captured after the intent asks again because it never had the answer. One that was lost
        # may have had it.
        if intents and asked.run.record.is_lost(_epoch(intents[-1])):
            verdict = last(entries, "wait.completed")
            if verdict and verdict.seq < intents[-1].seq:
                verdict = None  # it was about an attempt before
            if verdict:
                asked.run.told(verdict.payload["wait"])
                if verdict.payload["outcome"] == "cancelled":
                    raise told(asked)
            elif step.on_doubt == "ask":
                return await _doubt(asked, step, intents)
            if step.on_doubt == "fail" or (verdict and not (verdict.payload.get("value") or {}).get("approved")):
                return recorded(await _refuse(asked, step, "a person decided not to repeat it" if verdict else ""))
        attempt += 1
        payload = {"name": step.name, "on_doubt": step.on_doubt, "attempt": attempt, "epoch": asked.call.epoch}
        payload["request"] = asked.request
        await asked.note(NewEntry(kind="step.intent", key=asked.key, payload=payload))
    # The same for every attempt at this step, another one on a branch where another step has this key.
    identity = digest_of(canonical([asked.run.id, step.of or asked.key, _first(asked)])).removeprefix("sha256:")[:32]
    return {"status": "run", "attempt": attempt, "idempotency_key": identity}


def _first(asked: Asked) -> str:
    """The hash of what the step's first attempt asked."""
    body = {name: value for name, value in asked.body().items() if name != "of"}
    return request_hash(replace(asked.call, body=canonical(body)))


def _epoch(intent: Entry) -> int:
    """The epoch whose machine began it. The entry's own is another one where a fork carried it to its branch."""
    return int(intent.payload.get("epoch", intent.epoch))


async def _refuse(asked: Asked, step: Step, why: str) -> Entry:
    message = f"step {step.name!r} was begun on a machine that was lost: it may have taken effect"
    told = {"type": "InDoubt", "message": f"{message}; {why or 'it is declared on_doubt=fail'}"}
    entry = NewEntry(kind="step.result", key=asked.key, payload={"name": step.name, "error": told})
    return (await asked.note(entry))[0]


async def _doubt(asked: Asked, step: Step, intents: list[Entry]) -> Wait:
    """The open wait for the person who decides on a step in doubt."""
    known = await parking.opened(asked)
    if known is not None:
        return known
    name = f"Step {step.name!r} may have taken effect before its machine was lost. Do it again?"
    show = {"step": step.name, "begun": [entry.time for entry in intents]}
    show |= {} if step.args is None else {"args": step.args}  # what the person is to look for
    wait = Wait(id=new_id(), key=asked.key, kind="doubt", name=name, since=asked.run.clock.time(), show=show)
    return await parking.open_wait(asked, wait)


async def end(asked: Asked) -> Body:
    """Record the end of a step; the first acknowledged one is its end for ever, and the answer."""
    body = asked.body("result", "error")
    if ("result" in body) == ("error" in body):
        raise InvalidValue("the end of a step has either a result or an error")

    async def act() -> Body:
        entries = await asked.entries()
        begun, ended = last(entries, "step.intent"), last(entries, "step.result")
        if begun is None:
            raise Conflict(f"no step was begun with the key {asked.key}", hint="Ask /perdure/v1/step first.")
        if ended is None and asked.run.record.is_lost(_epoch(begun)):
            message = f"step {begun.payload['name']!r} was begun on a machine that was lost: it may have taken effect"
            raise Conflict(message, hint="Ask /perdure/v1/step: it says whether to run it.")
        if ended is None:
            payload = {"name": begun.payload["name"], **_end(body)}
            ended = (await asked.note(NewEntry(kind="step.result", key=asked.key, payload=payload)))[0]
        return _end(ended.payload)

    return await asked.warm(act)


def _end(payload: Body) -> Body:
    return {name: payload[name] for name in ("result", "error") if name in payload}


def recorded(entry: Entry) -> Body:
    """The answer of a step that has ended."""
    return {"status": "failed" if "error" in entry.payload else "done", **_end(entry.payload)}
