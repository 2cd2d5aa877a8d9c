"""Answers a run's model calls: from the log, from a call in flight, or by asking a provider and recording the turn.

A turn in the log (docs/formats/agent-calls.md has the payloads)::

    model.intent -> model.started (once per request to a provider) -> model.committed | model.aborted
    model.replayed: a later epoch asked again and got the same bytes

What a program was answered is answered again from the log: a committed turn with the provider's own bytes, a refusal
or a broken stream (aborted, with its ``answer``) as it was told, since the program may have gone on from it. What was
started and neither was in flight when a server died: it is marked as aborted, without an answer, and asked again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from perdure.context.log import ContextLog, NewEntry, digest_of, valid
from perdure.errors import Conflict, NoSpace, OverBudget, PerdureError, Unavailable
from perdure.gateway import dialects, entries, models
from perdure.gateway.asked import Asked, read
from perdure.gateway.budgets import Budgets
from perdure.gateway.dialects.dialect import Dialect, MalformedError, Summary, Usage
from perdure.gateway.flow import Flow
from perdure.gateway.prices import Prices
from perdure.gateway.providers import Providers
from perdure.gateway.turn import Turn
from perdure.gateway.upstream import ANSWER_MAX, BrokenError, Head, RefusedError, Retry, Upstream
from perdure.model import Answer, Budget, Call, JointBudget

JSON_HEADERS = {"content-type": "application/json"}
STREAM_HEADERS = {"content-type": "text/event-stream"}
ASK_NO_MORE = {"x-should-retry": "false"}  # to the SDKs: what could be asked again was
END_S = 2.0  # so long may a stream go on that has said its last: its connection is used again if it ends
FAILED = "provider-failed"
ENDING = "the server is ending"
NO_PRICES = Prices()
NO_BUDGET = Budget()
KEEP_AGAIN_S = 0.1
KEEP_AGAIN_MAX_S = 5.0

_log = logging.getLogger(__name__)


class Gateway:
    """The model calls of all runs of one server.

    ``log`` holds the turns; ``providers`` are asked. Close it, or use it as an async context manager.
    """

    def __init__(
        self,
        log: ContextLog,
        providers: Providers,
        *,
        prices: Prices = NO_PRICES,
        retry: Retry | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """now: by which budgets have days and months."""
        self._log = log
        self._providers = providers
        self._prices = prices
        self._upstream = Upstream(retry or Retry(), providers.limits)
        self._budgets = Budgets(log, prices, now)
        self._turns: dict[tuple[str, int, str], Turn] = {}
        self.turns_ended = 0  # turns that are in flight no more, whatever became of them

    async def __aenter__(self) -> Gateway:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop asking. What is in flight is not committed: it is asked again when the run goes on."""
        await self._stop(self._turns.values())
        await self._upstream.close()

    async def forget(self, run_id: str) -> None:
        """The run has ended: stop asking for it, and ask no provider again."""
        await self._stop(turn for key, turn in self._turns.items() if key[0] == run_id)

    async def _stop(self, turns: Iterable[Turn]) -> None:
        tasks = [turn.task for turn in turns if turn.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def in_flight(self) -> int:
        """Calls that a provider is answering now."""
        return len(self._turns)

    def is_in_flight(self, run_id: str) -> bool:
        """Whether a provider is answering a call of this run now."""
        return any(key[0] == run_id for key in self._turns)

    async def answer(
        self,
        call: Call,
        branch: int,
        *,
        new_at: int | None = None,
        budget: Budget = NO_BUDGET,
        joint: Sequence[JointBudget] = (),
    ) -> Answer:
        """The answer to one call under ``/v1/``; its body begins at ``call.offset``.

        new_at: ``turns_ended`` as it was before the log was seen to have nothing of this call. Where no turn has ended
        since, that holds still, and it is not looked up again. budget: what its run may spend in all;
        joint: what all of its agent may together.

        What is wrong with the request or the provider becomes an answer in the dialect's own error shape. Raises what
        the log raises (``StaleEpoch`` above all). Cancelling the asker, or dropping the answer, cancels nothing.
        """
        if models.is_asked(call):
            return models.answer(call, self._providers)
        try:
            asked = read(call, branch, self._providers, joint)
        except PerdureError as error:
            return refused(call, error)
        while True:
            turn = self._turns.get(asked.key)
            if turn is not None and not turn.is_of(call):
                if call.epoch <= turn.call.epoch:
                    hint = "each call has a lane and an ordinal of its own"
                    return refused(call, Conflict(f"another call is under way as {call.key}", hint=hint))
                await self._stop([turn])  # nobody wants to hear that any more
                continue
            if turn is None:
                # between the look above and this line nothing may wait: one call, one turn
                turn = self._turns[asked.key] = Turn(call, budget)
                is_new = new_at == self.turns_ended  # what is not in flight, and has not ended since, was never begun
                turn.task = asyncio.create_task(self._take(turn, asked, is_new=is_new))
                turn.task.add_done_callback(partial(self._not_begun, asked, turn))
            elif call.epoch > turn.epoch:
                turn.epoch = call.epoch
                if not call.is_first:
                    await self._append(asked, entries.replayed(call, 0), epoch=call.epoch)
            await turn.begun()
            if not turn.lost:
                return Answer(turn.status, turn.headers, turn.read(call.offset))
            if call.offset:
                message = "the answer was cut off when the server ended, and is gone: ask again"
                return _broken_off(asked.dialect, message, entries.LOST)

    def refused(self, call: Call, error: PerdureError) -> Answer:
        """See ``refused``."""
        return refused(call, error)

    def _not_begun(self, asked: Asked, turn: Turn, _task: asyncio.Task[None]) -> None:
        """Where a task was stopped before its first step, which says nothing itself: its askers would wait for ever."""
        if self._turns.get(asked.key) is turn:
            del self._turns[asked.key]
            self.turns_ended += 1
            turn.fail(Unavailable(ENDING, hint="ask again"))

    async def _take(self, turn: Turn, asked: Asked, *, is_new: bool) -> None:
        """Fill ``turn``, whoever listens. The call stays in flight until its turn is committed or given up."""
        call = asked.call
        try:
            known = [] if is_new else valid(await self._log.find(call.run_id, asked.branch, call.key))
            if (committed := entries.last(known, "model.committed")) is not None:
                if call.epoch > entries.newest_epoch(known) and not call.is_first:
                    await self._append(asked, entries.replayed(call, committed.seq), epoch=call.epoch)
                await self._tell(turn, committed.payload)
                return
            if (told := entries.told(known)) is not None:
                await self._tell(turn, told)
                return
            if call.offset:
                if (newest := entries.newest(known)) is None or newest.payload.get("told") != entries.LOST:
                    await self._append(asked, entries.lost(call), epoch=call.epoch)
                turn.lose()
                return
            if (newest := entries.newest(known)) is not None and newest.kind == "model.started":
                await self._append(asked, entries.aborted(call, entries.ENDED), epoch=call.epoch)
            await self._ask(turn, asked, is_new=entries.last(known, "model.intent") is None)
        except asyncio.CancelledError:
            turn.fail(Unavailable(ENDING, hint="ask again"))
            raise
        except Exception as error:  # a task has nobody above it: the askers get the error
            if turn.has_begun:
                turn.break_off(asked.dialect.error_event(str(error), code="gateway-failed"))
            else:
                turn.fail(error)
        finally:
            del self._turns[asked.key]
            self.turns_ended += 1

    async def _tell(self, turn: Turn, answer: Mapping[str, Any]) -> None:
        """What the log has."""
        body = await self._log.get_blob(answer["body"])
        turn.begin(answer["status"], answer["headers"])
        turn.add(body)
        turn.end()

    async def _ask(self, turn: Turn, asked: Asked, *, is_new: bool) -> None:
        pending = [entries.intent(asked)] if is_new else []
        try:
            async with self._budgets.held(asked, turn.budget):
                await self._fill(turn, asked, pending)
        except OverBudget as error:
            refusal = RefusedError(f"{error.message} ({error.hint})", status=error.http_status, code=error.code)
            await self._refuse(turn, asked, refusal, pending, is_asked=False)

    async def _fill(self, turn: Turn, asked: Asked, pending: list[NewEntry]) -> None:
        dialect, asked_at, loop = asked.dialect, time.monotonic(), asyncio.get_running_loop()
        flow = Flow(dialect.reading())
        head: Head | None = None
        try:
            async with asyncio.timeout(None) as rest, aclosing(self._steps(asked, pending)) as steps:
                async for step in steps:
                    if isinstance(step, Head):
                        head = _expected(step, asked)
                        if head.is_stream:
                            turn.begin(head.status, head.headers)
                        continue
                    turn.add(step)
                    if head is not None and head.is_stream:
                        flow.add(step)
                        turn.show(flow.visible)
                        if turn.size > ANSWER_MAX:
                            raise BrokenError(f"the provider's answer is over {ANSWER_MAX >> 20} MiB")
                        if flow.is_over and rest.when() is None:
                            rest.reschedule(loop.time() + END_S)
            assert head is not None
            summary = flow.end() if head.is_stream else dialect.whole(turn.body)
            if head.is_stream and not summary.finished and not summary.error:
                raise BrokenError(f"{head.provider}: the stream ended before the answer was complete")
            if not head.is_stream and not summary.finished:
                raise RefusedError(f"{head.provider} answered {head.status}, and that is no answer: {summary.error}")
        except RefusedError as refusal:
            await self._refuse(turn, asked, refusal, pending)
            return
        except (BrokenError, MalformedError, TimeoutError) as broken:
            if isinstance(broken, TimeoutError) and not flow.is_over:
                raise  # not ours
            assert head is not None
            if not flow.is_over:
                is_cut = isinstance(broken, BrokenError)
                reason = str(broken) if is_cut else f"{head.provider} sent an event that cannot be read: {broken}"
                await self._break_off(turn, asked, head.provider, reason, flow)
                return
            turn.cut(flow.whole)  # it broke behind the answer's end
            summary = flow.summary()
        if summary.usage != Usage():
            self._upstream.used(head.provider, asked.name, summary.usage.input_tokens + summary.usage.output_tokens)
        if summary.error:  # in the provider's own words, and they are in the body
            told = _kept(turn.status, turn.headers, turn.body)
            reason = f"{head.provider}: {summary.error}"
            bill = self._prices.bill(asked, head.provider, summary)
            entry = entries.aborted(asked.call, reason, 0, turn.size, told, summary, bill)
            await self._keep(asked, entry, body=turn.body)
        else:
            await self._commit(asked, turn.body, head, summary, time.monotonic() - asked_at)
        if not head.is_stream:
            turn.begin(head.status, head.headers)
        turn.end()

    async def _steps(self, asked: Asked, pending: list[NewEntry]) -> AsyncGenerator[Head | bytes]:
        """The answer of the first provider that has one. ``pending``: entries to write before anybody is asked."""
        call, is_first, before = asked.call, True, ""

        async def started(attempt: int, after: str, waited_s: float) -> None:
            """Right before each request: durable first, so that no request is ever uncounted."""
            nonlocal is_first
            entry = entries.started(call, place.provider.name, attempt, after or before, waited_s)
            written = [*pending, entry]
            pending.clear()
            # a later attempt goes on although the guest that asked may be gone: it will ask again
            epoch, is_first = call.epoch if is_first else None, False
            await self._append(asked, *written, epoch=epoch)

        for place in asked.places:
            try:
                question = asked.question(place)
                async with aclosing(self._upstream.ask(place.provider, question, started=started)) as steps:
                    async for step in steps:
                        yield step
                return
            except RefusedError as refusal:
                if not refusal.is_failure or place is asked.places[-1]:
                    raise
                before = refusal.reason

    async def _refuse(
        self, turn: Turn, asked: Asked, refusal: RefusedError, pending: list[NewEntry], *, is_asked: bool = True
    ) -> None:
        status = refusal.http_status
        body = refusal.body or asked.dialect.error_body(refusal.reason, code=refusal.code, status=status)
        headers = {**refusal.headers, **({} if refusal.body else JSON_HEADERS), **ASK_NO_MORE}
        answer = _kept(status, headers, body)
        entry = entries.aborted(asked.call, refusal.reason, refusal.status, 0, answer, is_asked=is_asked)
        await self._keep(asked, *pending, entry, body=body)
        turn.begin(status, headers)
        turn.break_off(body)

    async def _break_off(self, turn: Turn, asked: Asked, provider: str, reason: str, flow: Flow) -> None:
        """The program has a part, which nothing of the rest fits to."""
        received, summary = turn.size, flow.summary()
        event = asked.dialect.error_event(reason, code=FAILED, number=flow.events)
        body = turn.visible + event
        answer, bill = _kept(turn.status, turn.headers, body), self._prices.bill(asked, provider, summary)
        entry = entries.aborted(asked.call, reason, 0, received, answer, summary, bill)
        await self._keep(asked, entry, body=body)
        turn.break_off(event)

    async def _commit(self, asked: Asked, body: bytes, head: Head, summary: Summary, seconds: float) -> None:
        answer, bill = _kept(head.status, head.headers, body), self._prices.bill(asked, head.provider, summary)
        entry = entries.committed(asked.call, head.provider, answer, len(body), summary, bill, seconds)
        await self._keep(asked, entry, body=body)

    async def _keep(self, asked: Asked, *ends: NewEntry, body: bytes) -> None:
        """Keep a turn's end, for as long as that takes: it is paid for, its program is told it, and nothing goes on
        without it."""
        pause_s, ends = KEEP_AGAIN_S, tuple(self._budgets.counted(asked, ends))
        while True:
            try:
                await self._append(asked, *ends, epoch=None, body=body)
                return
            except (NoSpace, Unavailable) as error:
                _log.warning("run %s: turn %s cannot be kept yet: %s", asked.call.run_id, asked.call.key, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, KEEP_AGAIN_MAX_S)

    async def _append(self, asked: Asked, *entries: NewEntry, epoch: int | None, body: bytes | None = None) -> None:
        """body: of the answer that they name, in one transaction with them."""
        blobs = [] if body is None else [body]
        await self._log.append(asked.call.run_id, entries, epoch=epoch, branch=asked.branch, blobs=blobs)


def _kept(status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """An answer as its entry has it; its body is kept with that."""
    return {"status": status, "headers": dict(headers), "body": digest_of(body)}


def _expected(head: Head, asked: Asked) -> Head:
    """What an SDK could not read is not handed on as if it were an answer."""
    kind, wanted = head.headers.get("content-type", "").partition(";")[0].strip().lower(), asked.request.is_stream
    is_other = head.is_stream != wanted or (not wanted and kind and not kind.endswith("json"))
    if asked.dialect.is_known and is_other:
        it = "a stream of events" if wanted else "JSON"
        told = f"{head.provider} answered {head.status} with {kind or 'no content type'}"
        raise RefusedError(f"{told}, and not with {it}")
    return head


def refused(call: Call, error: PerdureError) -> Answer:
    """The error as its dialect tells it: as an answer, or at the end of a stream of which the asker has a part."""
    dialect = dialects.of(call)
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    if call.offset:
        return _broken_off(dialect, message, error.code)
    body = dialect.error_body(message, code=error.code, status=error.http_status)
    return Answer(error.http_status, {**JSON_HEADERS, **ASK_NO_MORE}, once(body))


def _broken_off(dialect: Dialect, message: str, code: str) -> Answer:
    """Behind the part that the asker has, which may end in the middle of an event."""
    return Answer(200, STREAM_HEADERS, once(b"\n\n" + dialect.error_event(message, code=code)))


async def once(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body
