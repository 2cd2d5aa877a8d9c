"""Answers what a machine asks in the name of its run: from the log where it was answered before, once where it is new.

The wire between the agent SDK and the server (``docs/formats/agent-calls.md`` says more). Every request has
``Perdure-Lane`` and ``Perdure-Ordinal``, bodies and answers are JSON, an error is ``{"error": {code, message, ...}}``.

=============================  =====================================  =============================================
POST /perdure/v1/begin         {}                                     {"run_id", "input", "agent"}
POST /perdure/v1/step          {"name", "on_doubt": "retry" (default  {"status": "run", "attempt": n,
                               for steps) | "ask" (default: tools)    "idempotency_key": K} or {"status": "done",
                               | "fail", "args"?: JSON, "of"?}        "result"} or {"status": "failed", "error"}
POST /perdure/v1/step/end      {"result"} or {"error": {..}}, under   {"result"} or {"error"}: what is recorded (the
                               the SAME lane and ordinal as its step  first acknowledged end wins: use this one)
POST /perdure/v1/wait          {"kind": "time", "seconds"}, or        {"kind": "time"}
                               "until": ISO 8601 or seconds since
                               1970
                               {"kind": "signal", "name",             {"kind": "signal", "value", "timed_out": bool}
                               "timeout_s"?}
                               {"kind": "approval", "prompt",         {"kind": "approval", "approved", "comment",
                               "show"?, "form"?: [field, ..],         "values", "by", "at", "timed_out"} (late: not
                               "timeout_s"?}                          approved); a field: ``runs.forms.Field``
                               {"kind": "child", "function" and       {"kind": "child", "run_id", and "result" or
                               "input"?, or "command": [word, ..],    "error"}: a run of another agent of the same
                               "image"?, "memory_mib"?, "vcpus"?,     file, or of a program, started once; its image
                               "timeout_s"?}                          the parent's
                               {"kind": "fork", "run": run id,        {"kind": "fork", "run_id", "timed_out", and
                               "timeout_s"?}                          "result" or "error"}: a fork that this run made
POST /perdure/v1/wait/set      {"mode": "all" | "any", "waits": [the  {"kind": mode, "timed_out", "order": [index, ..],
                               bodies of waits], "timeout_s"?}        "waits": [the answer, or null, of each]}: once
                                                                      all or one of them came; the others are over
POST /perdure/v1/wait/withdraw {}, under the SAME lane and ordinal    {}; the wait then answers {"kind",
                               as its wait: nobody waits any more     "withdrawn": true}
POST /perdure/v1/value         {"of": "now" | "random" | "uuid"}      {"value"}, drawn when it was first asked
POST /perdure/v1/emit          {"name", "value"}                      {}
POST /perdure/v1/checkpoint    {"keep": bool}                         {"snapshot": DIGEST, "seq"}, once it is durable
POST /perdure/v1/fork          {"count": N}                           {"number": 0, "run_id", "forks": [run id, ..]},
                                                                      and in the forks, which go on from this call:
                                                                      from 1 on, their own id, the same
POST /perdure/v1/signal        {"run", "name", "value"?}              {"run_id"}: another run has it, once
POST /perdure/v1/message       {"message": {"role", "content", ..}}   {}
POST /perdure/v1/messages      {}                                     {"messages": [...]} recorded by ``message``
                                                                      before this call was first asked
POST /perdure/v1/complete      {"result"}                             {} and the run ends: completed
POST /perdure/v1/fail          {"error": {"code"?, "message", ..}}    {} and the run ends: failed
POST /perdure/v1/history       {"after": SEQ}, of workers              {"lines": [...], "next": SEQ or null}: a page of
                                                                      what the log has (``runs.replay``)
POST /perdure/v1/mismatch      {"recorded", "asked"}, of workers      {} and the run ends: version-mismatch
ANY  /perdure/secret/NAME/...  what a host has at that path; the secret is put in here (0026)
POST /v1/...                   } the gateway (``gateway.dialects``)
GET  /v1/models                }
=============================  =====================================  =============================================

A run that is to end (cancelled, or timed out) tells its program once: by the error ``cancelled`` as the answer of each
wait that is open, or of the next new call (``runs.ending``).

One rule for every call: its key (lane and ordinal) is looked up along the
run's branch. Nothing there: it is new. The same request hash there: it is the same call, asked again after a restore,
a restart or a broken connection. Another hash: the program went another way than the log, and the branch is forked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from perdure.context.log import NewEntry, canonical
from perdure.errors import Cancelled, InvalidValue, NotFound, Unauthorized, VersionMismatch
from perdure.model import Answer, Call, RunState
from perdure.runs import checkpoints, drawn, ends, forking, parking, replay, sending, steps
from perdure.runs.asked import Asked, Body, last
from perdure.runs.budgets import Budgets
from perdure.runs.ending import tell
from perdure.runs.hearing import Hearing
from perdure.runs.ports import ModelCalls, SecretCalls
from perdure.runs.run import Run
from perdure.runs.tokens import check_key

Route = Callable[[Asked], Awaitable[Body]]
PREFIX = "/perdure/v1/"
SECRETS = "/perdure/secret/"
NO_BUDGETS = Budgets()


class Calls:
    """Joins the runs' own calls and the gateway."""

    def __init__(
        self,
        models: ModelCalls,
        deliver: sending.Deliver,
        make: forking.Make,
        secrets: SecretCalls | None = None,
        budgets: Budgets = NO_BUDGETS,
    ) -> None:
        """deliver: signals, to whichever run they are for. make: forks. secrets: None: there are none."""
        self._models = models
        self._secrets = secrets
        self._budgets = budgets
        others = {"signal": partial(sending.send, deliver=deliver), "fork": partial(forking.fork, make=make)}
        self._routes: dict[str, Route] = {**ROUTES, **others}

    async def answer(self, run: Run, call: Call) -> Answer:
        """The answer, its body from ``call.offset`` on. StaleEpoch: the machine is to end. Unavailable: ask again.
        Other errors are the guest's own."""
        await run.admit(call.epoch)
        asked, path = Asked(run, call), call.path.partition("?")[0]
        if path.startswith(SECRETS) and self._secrets is not None:
            return await self._secret(asked, self._secrets)
        if not path.startswith(PREFIX):
            try:
                check_key(run.record, call)
                await tell(asked, path, is_model=True)
                return await self._model(asked)
            except (Cancelled, Unauthorized, VersionMismatch) as error:  # as whoever's SDK asks can read it
                return self._models.refused(call, error)
        route = self._routes.get(path.removeprefix(PREFIX))
        if route is None:
            raise NotFound(f"no such call: {path}", hint="See docs/formats/agent-calls.md.")
        if call.method != "POST":
            raise InvalidValue(f"{path} is asked with POST, not {call.method}")
        run.touch()
        try:
            await tell(asked, path.removeprefix(PREFIX), is_model=False)
            return _json_answer(await route(asked), call.offset)
        finally:
            run.touch()

    async def _model(self, asked: Asked) -> Answer:
        activity, call, ended = asked.run.activity, asked.call, self._models.turns_ended
        branch = await asked.warm(lambda: _look(asked))
        if asked.key in asked.run.record.unheard:
            call = replace(call, is_first=True)
        with activity.asking(call, branch):
            new_at, request = ended if asked.is_new else None, asked.run.record.request
            joint = self._budgets.joint_of(request.names)
            answer = await self._models.answer(call, branch, new_at=new_at, budget=request.budget, joint=joint)
            pieces = aiter(answer.body)
            first = await anext(pieces, b"")
        with ExitStack() as held:
            held.enter_context(activity.hearing())
            await asked.run.admit(asked.call.epoch)  # nothing is answered while the machine is being captured
            return Answer(answer.status, answer.headers, Hearing(asked, branch, answer, first, pieces, held.pop_all()))

    async def _secret(self, asked: Asked, secrets: SecretCalls) -> Answer:
        """Nothing of it is answered again from the log: what a tool does belongs into a step. That it was asked is
        written before it is."""
        use = secrets.use(asked.call, asked.run.record.request.names)
        path = use.path.partition("?")[0]  # what is asked with may be somebody's own

        async def note() -> None:
            payload = {"secret": use.secret, "method": use.method, "path": path}
            await asked.note(NewEntry(kind="secret.used", payload=payload))

        if not secrets.is_open(asked.call):
            await asked.warm(note)
        with ExitStack() as held:
            held.enter_context(asked.run.activity.hearing())  # a machine that sleeps in it would ask once more
            answer = await secrets.answer(asked.call, use)
            pieces = aiter(answer.body)
            body = Hearing(asked, None, answer, b"", pieces, held.pop_all())
            return Answer(answer.status, answer.headers, body)


async def _look(asked: Asked) -> int:
    """The branch that a model call is of; that an earlier epoch's turn is answered again is noted, once an epoch."""
    known, epoch = await asked.known(), asked.call.epoch
    done, noted = last(known, "model.committed"), last(known, "model.replayed")
    if done is None:
        asked.run.progressed = True
        if asked.run.replay is not None and asked.run.replay.entries():
            await asked.run.write(epoch=epoch)  # what was answered since a loss, before the gateway's own entries
    elif asked.key in asked.run.record.unheard:
        pass  # no earlier machine has heard it
    elif done.epoch < epoch and (noted is None or noted.epoch < epoch):
        entry = NewEntry(kind="model.replayed", key=asked.key, payload={"seq": done.seq})
        await asked.run.write(entry, epoch=epoch)
    return asked.run.branch


async def _begin(asked: Asked) -> Body:
    request = asked.run.record.request
    return {"run_id": asked.run.id, "agent": request.agent, "input": request.input}


async def _emit(asked: Asked) -> Body:
    body = asked.body("name", "value")
    name = body.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidValue(f'"name" is text that is not empty, and not {name!r}', hint='{"name": "report", "value": 1}')

    async def act() -> Body:
        if not await asked.known():
            payload = {"name": name, "value": body.get("value"), "request": asked.request}
            await asked.note(NewEntry(kind="emit", key=asked.key, payload=payload))
        return {}

    return await asked.warm(act)


async def _message(asked: Asked) -> Body:
    message = asked.body("message").get("message")
    if not isinstance(message, dict):
        raise InvalidValue('"message" is an object', hint='{"message": {"role": "user", "content": "..."}}')

    async def act() -> Body:
        if not await asked.known():
            payload = {"message": message, "request": asked.request}
            await asked.note(NewEntry(kind="message", key=asked.key, payload=payload))
        return {}

    return await asked.warm(act)


async def _messages(asked: Asked) -> Body:
    async def act() -> int:
        known = await asked.known()
        if not known:
            payload = {"messages": "read", "request": asked.request}
            known = await asked.note(NewEntry(kind="note", key=asked.key, payload=payload))
        return known[0].seq

    upto, after, run = await asked.warm(act), 0, asked.run
    found: list[Any] = []
    while page := await run.context.read(run.id, branch=run.branch, after=after, kind="message"):
        counting = (e for e in page if e.seq < upto and run.record.counts(e.key, e.seq))
        found += [entry.payload["message"] for entry in counting]
        after = page[-1].seq
    return {"messages": found}


async def _complete(asked: Asked) -> Body:
    result = asked.body("result").get("result")

    async def act() -> Body:
        await asked.known()
        await ends.conclude(asked.run, RunState.COMPLETED, epoch=asked.call.epoch, result=result)
        return {}

    return await asked.warm(act)


async def _fail(asked: Asked) -> Body:
    told = asked.body("error").get("error")
    told = dict(told) if isinstance(told, dict) else {"message": str(told)}
    known = {name: str(told.pop(name, default)) for name, default in FAILURE.items()}
    error = {**known, "details": told}

    async def act() -> Body:
        await asked.known()
        await ends.conclude(asked.run, RunState.FAILED, epoch=asked.call.epoch, error=error, kind="agent-failed")
        return {}

    return await asked.warm(act)


FAILURE = {"code": "agent-failed", "message": "the agent failed", "hint": ""}

ROUTES: dict[str, Route] = {
    "begin": _begin,
    "step": steps.begin,
    "step/end": steps.end,
    "wait": parking.wait,
    "wait/set": parking.wait_set,
    "wait/withdraw": parking.withdraw,
    "value": drawn.value,
    "emit": _emit,
    "checkpoint": checkpoints.of_program,
    "message": _message,
    "messages": _messages,
    "complete": _complete,
    "fail": _fail,
    "history": replay.history,
    "mismatch": replay.mismatch,
}


def _json_answer(value: Any, offset: int) -> Answer:
    content = canonical(value)

    async def body() -> AsyncIterator[bytes]:
        yield content[offset:]

    return Answer(200, {"content-type": "application/json", "content-length": str(len(content))}, body())
