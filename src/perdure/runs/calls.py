"""Answers what a machine asks in the name of its run: from the log where it was answered before, once where it is new.

The wire between the agent SDK and the server (``docs/formats/agent-calls.md`` says more). Every request has
``Perdure-Lane`` and ``Perdure-Ordinal``, bodies and answers are JSON, an error is ``{"error": {code, message, ...}}``.

=============================  =====================================  =============================================
POST /perdure/v1/begin         {}                                     {"run_id", "input", "agent"}
POST /perdure/v1/step          {"name", "on_doubt": "retry" (default  {"status": "run", "attempt": n,
                               for steps) | "ask" (default: tools)    "idempotency_key": K} or {"status": "done",
                               | "fail", "args"?: JSON}               "result"} or {"status": "failed", "error"}
POST /perdure/v1/step/end      {"result"} or {"error": {..}}, under   {"result"} or {"error"}: what is recorded (the
                               the SAME lane and ordinal as its step  first acknowledged end wins: use this one)
POST /perdure/v1/wait          {"kind": "time", "seconds"}            {"kind": "time"}
                               {"kind": "signal", "name",             {"kind": "signal", "value", "timed_out": bool}
                               "timeout_s"?}
                               {"kind": "approval", "prompt",         {"kind": "approval", "approved", "comment",
                               "show"?, "timeout_s"?}                 "by", "at", "timed_out"} (late: not approved)
POST /perdure/v1/emit          {"name", "value"}                      {}
POST /perdure/v1/message       {"message": {"role", "content", ..}}   {}
POST /perdure/v1/messages      {}                                     {"messages": [...]} recorded by ``message``
                                                                      before this call was first asked
POST /perdure/v1/complete      {"result"}                             {} and the run ends: completed
POST /perdure/v1/fail          {"error": {"code"?, "message", ..}}    {} and the run ends: failed
POST /v1/chat/completions      } the gateway
GET  /v1/models                }
=============================  =====================================  =============================================

One rule for every call: its key (lane and ordinal) is looked up along the
run's branch. Nothing there: it is new. The same request hash there: it is the same call, asked again after a restore,
a restart or a broken connection. Another hash: the program went another way than the log, and the branch is forked.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from perdure.context.log import NewEntry, canonical, digest_of, request_hash
from perdure.errors import Conflict, InvalidValue, NotFound, StaleEpoch, Unavailable
from perdure.model import Answer, Call, Entry, Frozen, RunState, new_id
from perdure.runs.ports import ModelCalls
from perdure.runs.run import WARM, Run, taking
from perdure.runs.waits import Wait, Waits

PREFIX = "/perdure/v1/"
HIDDEN = ("request",)  # in payloads, but not part of what was said

Result = TypeVar("Result")
Body = dict[str, Any]


class StepAsked(Frozen, frozen=True, kw_only=True):
    name: str
    on_doubt: str = "ask"


class WaitAsked(Frozen, frozen=True, kw_only=True):
    kind: str
    name: str = ""
    prompt: str = ""
    seconds: float | None = None
    timeout_s: float | None = None
    show: Any = None


class Calls:
    """Joins the runs' own calls and the gateway."""

    def __init__(self, models: ModelCalls) -> None:
        self._models = models
        self._routes: dict[str, Callable[[Run, Call, Body], Awaitable[Any]]] = {
            "begin": self._begin,
            "step": self._step,
            "emit": self._emit,
            "message": self._message,
            "messages": self._messages,
            "step/end": self._step_end,
            "complete": self._complete,
            "fail": self._fail,
        }

    async def answer(self, run: Run, call: Call) -> Answer:
        """The answer, its body from ``call.offset`` on. StaleEpoch: the machine is to end. Unavailable: ask again.
        Other errors are the guest's own."""
        await run.admit(call.epoch)
        path = call.path.partition("?")[0]
        if not path.startswith(PREFIX):
            return await self._model(run, call)
        if call.method != "POST":
            raise InvalidValue(f"{path} is asked with POST, not {call.method}")
        name, body = path.removeprefix(PREFIX), _object(call)
        if name == "wait":
            return _json_answer(await self._wait(run, call, _convert(body, WaitAsked, path)), call.offset)
        if name not in self._routes:
            raise NotFound(f"no such call: {path}", hint="See docs/formats/agent-calls.md.")
        try:
            return _json_answer(await self._routes[name](run, call, body), call.offset)
        finally:
            run.touch()

    # -- model calls

    async def _model(self, run: Run, call: Call) -> Answer:
        working = run.working()
        working.__enter__()  # until the last byte of the answer was handed on

        async def look() -> int:
            known = await self._known(run, call)
            done = _last(known, "model.committed")
            counted = _last(known, "model.replayed")
            if done and done.epoch < call.epoch and (counted is None or counted.epoch < call.epoch):
                await run.write(
                    NewEntry(kind="model.replayed", key=call.key, payload={"seq": done.seq}), epoch=call.epoch
                )
            elif not done:
                run.progressed = True
            return run.branch

        try:
            branch = await self._warm(run, call, look)
            answer = await self._models.answer(call, branch)
        except BaseException:
            working.__exit__(None, None, None)
            raise

        async def body() -> AsyncIterator[bytes]:
            try:
                async for piece in answer.body:
                    yield piece
            finally:
                working.__exit__(None, None, None)

        return Answer(answer.status, answer.headers, body())

    # -- the run's own calls

    async def _begin(self, run: Run, call: Call, body: Body) -> Body:
        request = run.record.request
        return {"run_id": run.id, "agent": request.agent, "input": request.input}

    async def _emit(self, run: Run, call: Call, body: Body) -> Body:
        async def act() -> Body:
            if not await self._known(run, call):
                payload = {"name": body.get("name", ""), "value": body.get("value"), "request": request_hash(call)}
                await self._note(run, call, NewEntry(kind="emit", key=call.key, payload=payload))
            return {}

        return await self._warm(run, call, act)

    async def _message(self, run: Run, call: Call, body: Body) -> Body:
        message = body.get("message")
        if not isinstance(message, dict):
            raise InvalidValue('"message" is an object', hint='{"message": {"role": "user", "content": "..."}}')

        async def act() -> Body:
            if not await self._known(run, call):
                payload = {"message": message, "request": request_hash(call)}
                await self._note(run, call, NewEntry(kind="message", key=call.key, payload=payload))
            return {}

        return await self._warm(run, call, act)

    async def _messages(self, run: Run, call: Call, body: Body) -> Body:
        async def act() -> int:
            known = await self._known(run, call)
            if not known:
                payload = {"messages": "read", "request": request_hash(call)}
                known = await self._note(run, call, NewEntry(kind="note", key=call.key, payload=payload))
            return known[0].seq

        upto, after = await self._warm(run, call, act), 0
        found: list[Any] = []
        while page := await run.context.read(run.id, branch=run.branch, after=after, kind="message"):
            found += [entry.payload["message"] for entry in page if entry.seq < upto]
            after = page[-1].seq
        return {"messages": found}

    async def _complete(self, run: Run, call: Call, body: Body) -> Body:
        result = body.get("result")
        why = {"result": result}

        async def act() -> Body:
            await self._known(run, call)
            await run.write(to=RunState.COMPLETED, epoch=call.epoch, why=why, result=result)
            return {}

        return await self._warm(run, call, act)

    async def _fail(self, run: Run, call: Call, body: Body) -> Body:
        told = body.get("error")
        told = told if isinstance(told, dict) else {"message": str(told)}
        error = {"code": "agent-failed", "message": "the agent failed", "hint": "", **told}

        async def act() -> Body:
            await self._known(run, call)
            await run.write(to=RunState.FAILED, epoch=call.epoch, why={"error": error}, error=error)
            return {}

        return await self._warm(run, call, act)

    # -- steps

    async def _step(self, run: Run, call: Call, body: Body) -> Body:
        asked = _convert(body, StepAsked, call.path)
        if asked.on_doubt not in ("retry", "ask", "fail"):
            raise InvalidValue(f"on_doubt is retry, ask or fail, not {asked.on_doubt!r}")
        while True:
            answer = await self._warm(run, call, lambda: self._step_begin(run, call, asked))
            if not isinstance(answer, Wait):
                return answer
            await self._park(run, call, answer)

    async def _step_begin(self, run: Run, call: Call, asked: StepAsked) -> Body | Wait:
        """The answer of a step's first half; the wait when a person is to decide first."""
        entries = await self._known(run, call)
        result = _last(entries, "step.result")
        if result:
            return _step_result(result)
        intents = [entry for entry in entries if entry.kind == "step.intent"]
        verdict = _last(entries, "wait.completed")
        if verdict:
            run.told(verdict.payload["wait"])
        decided = verdict is not None and verdict.seq > intents[-1].seq
        attempt = len(intents)
        in_doubt = bool(intents) and intents[-1].epoch in run.record.lost_epochs
        if in_doubt and not decided and asked.on_doubt == "ask":
            return await self._doubt(run, call, asked, entries)
        refused = decided and verdict is not None and not (verdict.payload.get("value") or {}).get("approved")
        if in_doubt and (refused or asked.on_doubt == "fail"):
            why = "a person decided not to do it again" if refused else "its step is declared on_doubt=fail"
            message = f"step {asked.name!r} was begun on a machine that was lost: it may have taken effect; {why}"
            doubt: Body = {"name": asked.name, "error": {"type": "InDoubt", "message": message}}
            written = await self._note(run, call, NewEntry(kind="step.result", key=call.key, payload=doubt))
            return _step_result(written[0])
        if not intents or intents[-1].epoch != call.epoch:
            attempt = len(intents) + 1
            begun = {"name": asked.name, "on_doubt": asked.on_doubt, "attempt": attempt}
            payload = {**begun, "request": request_hash(call)}
            await self._note(run, call, NewEntry(kind="step.intent", key=call.key, payload=payload))
        # The same for every attempt at this step, another one on a branch where another step has this key.
        identity = digest_of(canonical([run.id, call.key, request_hash(call)])).removeprefix("sha256:")[:32]
        return {"status": "run", "attempt": attempt, "idempotency_key": identity}

    async def _doubt(self, run: Run, call: Call, asked: StepAsked, entries: list[Entry]) -> Wait:
        """The open wait for the person who decides on a step in doubt."""
        for wait in run.record.waits.open:
            if wait.key == call.key:
                return wait
        show = {"step": asked.name, "begun": [entry.time for entry in entries if entry.kind == "step.intent"]}
        name = f"Step {asked.name!r} may have taken effect before its machine was lost. Do it again?"
        return await self._open(run, call, Wait(id=new_id(), key=call.key, kind="doubt", name=name, since=0, show=show))

    async def _step_end(self, run: Run, call: Call, body: Body) -> Body:
        """The first acknowledged end of a step is its end."""
        if ("result" in body) == ("error" in body):
            raise InvalidValue("the end of a step has either a result or an error")

        async def act() -> Body:
            entries = await run.context.find(run.id, run.branch, call.key)
            begun, ended = _last(entries, "step.intent"), _last(entries, "step.result")
            if begun is None:
                raise Conflict(f"no step was begun with the key {call.key}", hint="Ask /perdure/v1/step first.")
            if ended is None:
                kept = {name: body[name] for name in ("result", "error") if name in body}
                payload = {"name": begun.payload["name"], **kept}
                ended = (await self._note(run, call, NewEntry(kind="step.result", key=call.key, payload=payload)))[0]
            return {name: ended.payload[name] for name in ("result", "error") if name in ended.payload}

        return await self._warm(run, call, act)

    # -- waits

    async def _wait(self, run: Run, call: Call, asked: WaitAsked) -> Body:
        _check_wait(asked)
        while True:
            found = await self._warm(run, call, lambda: self._wait_begin(run, call, asked))
            if isinstance(found, Entry):
                run.told(found.payload["wait"])
                return _wait_answer(asked.kind, found.payload)
            await self._park(run, call, found)

    async def _wait_begin(self, run: Run, call: Call, asked: WaitAsked) -> Entry | Wait:
        """The entry that completed this wait, or the wait, open."""
        entries = await self._known(run, call)
        done = _last(entries, "wait.completed")
        if done:
            return done
        for wait in run.record.waits.open:
            if wait.key == call.key:
                if run.state is RunState.RUNNING:
                    await run.write(to=RunState.WAITING, epoch=call.epoch, why={"wait": wait.id})
                return wait
        seconds = asked.seconds if asked.kind == "time" else asked.timeout_s
        wait = Wait(
            id=new_id(),
            key=call.key,
            kind=asked.kind,  # type: ignore[arg-type]  # checked by _check_wait
            name=asked.name or asked.prompt,
            since=0,
            until=None if seconds is None else time.time() + seconds,
            show=asked.show,
        )
        signal = run.record.waits.kept(asked.name) if asked.kind == "signal" else None
        if signal is None:
            return await self._open(run, call, wait)
        started = _started(wait, call)
        outcome = {"wait": wait.id, "kind": "signal", **taking(signal)}
        completed = NewEntry(kind="wait.completed", key=call.key, payload=outcome)
        return (await self._note(run, call, started, completed))[-1]

    async def _open(self, run: Run, call: Call, wait: Wait) -> Wait:
        wait = msgspec.structs.replace(wait, since=time.time())
        to = RunState.WAITING if run.state is RunState.RUNNING else None
        await run.write(_started(wait, call), to=to, epoch=call.epoch, why={"wait": wait.id})
        run.progressed = True
        return wait

    async def _park(self, run: Run, call: Call, wait: Wait) -> None:
        """Until the wait is not open any more. Unavailable once the machine is captured: it asks again."""
        with run.asking(wait.id):
            await run.until(
                lambda: (
                    run.ended
                    or run.record.epoch != call.epoch
                    or run.state in (RunState.SUSPENDED, RunState.RECOVERING)
                    or (run.record.waits.find(wait.id) is None and run.state in WARM)
                )
            )
        if run.record.epoch != call.epoch and not run.ended:
            raise Unavailable(f"run {run.id} went on in another epoch")

    # -- the rule

    async def _warm(self, run: Run, call: Call, act: Callable[[], Awaitable[Result]]) -> Result:
        """Run ``act`` under the run's lock while its machine is warm and of the call's epoch."""
        while True:
            await run.admit(call.epoch)

            async def checked() -> tuple[bool, Result | None]:
                if run.state not in WARM or run.record.epoch != call.epoch:
                    return False, None
                return True, await act()

            done, result = await run.atomically(checked)
            if done:
                return result  # type: ignore[return-value]

    async def _note(self, run: Run, call: Call, *entries: NewEntry) -> list[Entry]:
        run.progressed = True
        return await run.write(*entries, epoch=call.epoch)

    async def _known(self, run: Run, call: Call) -> list[Entry]:
        """What the branch has of this call; [] when it is new, also because the run was forked just now."""
        entries = await run.context.find(run.id, run.branch, call.key)
        asked = request_hash(call)
        recorded = next(
            (e.payload["request"] for e in entries if isinstance(e.payload, dict) and "request" in e.payload), ""
        )
        if not entries or recorded in ("", asked):
            return entries
        await self._diverge(run, call, entries[0], str(recorded))
        return []

    async def _diverge(self, run: Run, call: Call, first: Entry, recorded: str) -> None:
        """The program asks something else than the log has here."""
        asked = {"method": call.method, "path": call.path, "body": _shown(call.body)}
        had = {name: value for name, value in first.payload.items() if name not in HIDDEN}
        why = {
            "key": call.key,
            "from_branch": run.branch,
            "at": first.seq,
            "recorded": {"kind": first.kind, "hash": recorded, "payload": had},
            "asked": {"hash": request_hash(call), **asked},
        }
        entry = NewEntry(kind="diverged", key=None, payload={"policy": run.record.request.on_divergence, **why})
        if run.record.request.on_divergence == "fail":
            message = f"the program went another way than its log: call {call.key} differs from entry {first.seq}"
            hint = "The details have both sides; start the run with on_divergence=fork to go on live instead."
            error = {"code": "diverged", "message": message, "hint": hint, "details": why}
            epoch = call.epoch + 1
            await run.write(entry, to=RunState.FAILED, epoch=epoch, why={"error": error}, error=error)
            raise StaleEpoch(message, hint=hint)
        waits, after = Waits(), 0
        while after < first.seq - 1 and (page := await run.context.read(run.id, branch=run.branch, after=after)):
            for older in page:
                if older.seq < first.seq:
                    waits = waits.after(older.kind, older.payload)
            after = page[-1].seq
        await run.write(entry, fork=(run.branch, first.seq - 1), epoch=call.epoch, waits=waits)


def _object(call: Call) -> Body:
    try:
        body = msgspec.json.decode(call.body or b"{}")
    except msgspec.DecodeError as error:
        raise InvalidValue(f"the body of {call.path} is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidValue(f"the body of {call.path} is not a JSON object")
    return body


def _convert(body: Body, kind: type[Result], path: str) -> Result:
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise InvalidValue(f"the body of {path}: {error}", hint="See docs/formats/agent-calls.md.") from error


def _check_wait(asked: WaitAsked) -> None:
    if asked.kind not in ("time", "signal", "approval"):
        raise InvalidValue(f"no such kind of wait: {asked.kind!r}", hint="It is time, signal or approval.")
    if asked.kind == "time" and asked.seconds is None:
        raise InvalidValue('a wait for a time needs "seconds"')
    if asked.kind == "signal" and not asked.name:
        raise InvalidValue('a wait for a signal needs its "name"')
    for name, seconds in (("seconds", asked.seconds), ("timeout_s", asked.timeout_s)):
        if seconds is not None and not 0 <= seconds <= 1e10:
            raise InvalidValue(f"{name} is not a number of seconds from 0 on: {seconds}")


def _started(wait: Wait, call: Call) -> NewEntry:
    payload = {"wait": msgspec.to_builtins(wait), "request": request_hash(call)}
    return NewEntry(kind="wait.started", key=call.key, payload=payload)


def _wait_answer(kind: str, done: Body) -> Body:
    timed_out = done["outcome"] == "timed-out"
    if kind == "time":
        return {"kind": kind}
    if kind == "signal":
        return {"kind": kind, "value": done.get("value"), "timed_out": timed_out}
    verdict = done.get("value") or {"approved": False, "comment": ""}
    return {"kind": kind, **verdict, "by": done.get("by", ""), "at": done.get("at", 0.0), "timed_out": timed_out}


def _step_result(entry: Entry) -> Body:
    if "error" in entry.payload:
        return {"status": "failed", "error": entry.payload["error"]}
    return {"status": "done", "result": entry.payload.get("result")}


def _last(entries: list[Entry], kind: str) -> Entry | None:
    return next((entry for entry in reversed(entries) if entry.kind == kind), None)


def _shown(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body) if body else None
    except msgspec.DecodeError:
        return body[:1000].decode("utf-8", "replace")


def _json_answer(value: Any, offset: int) -> Answer:
    content = canonical(value)

    async def body() -> AsyncIterator[bytes]:
        yield content[offset:]

    return Answer(200, {"content-type": "application/json", "content-length": str(len(content))}, body())
