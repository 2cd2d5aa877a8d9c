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
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec

from perdure.context.log import ContextLog, NewEntry, request_hash, valid
from perdure.errors import NoSpace, Unavailable
from perdure.gateway.completions import Summary, error_body, error_event, summarize
from perdure.gateway.providers import Providers
from perdure.gateway.turn import Turn
from perdure.gateway.upstream import BrokenError, RefusedError, Retry, Upstream
from perdure.model import Answer, Call, Entry

CHAT = "/v1/chat/completions"
MODELS = "/v1/models"
TEXT_SHOWN = 200  # characters of an answer that its entry repeats, for readers of the log
JSON_HEADERS = {"content-type": "application/json"}
STREAM_HEADERS = {"content-type": "text/event-stream"}
LOST = "stream-lost"  # what a program is told that has a part of an answer which died with a server
ENDED = "the server ended before the answer was complete"
COMMIT_AGAIN_S = 0.1
COMMIT_AGAIN_MAX_S = 5.0

_log = logging.getLogger(__name__)


class Gateway:
    """The model calls of all runs of one server.

    ``log`` holds the turns; ``providers`` are asked. Close it, or use it as an async context manager.
    """

    def __init__(self, log: ContextLog, providers: Providers, *, retry: Retry | None = None) -> None:
        self._log = log
        self._providers = providers
        self._upstream = Upstream(retry or Retry())
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

    async def answer(self, call: Call, branch: int, *, new_at: int | None = None) -> Answer:
        """The answer to one call under ``/v1/``; its body begins at ``call.offset``.

        new_at: ``turns_ended`` as it was before the log was seen to have nothing of this call. Where no turn has ended
        since, that holds still, and it is not looked up again.

        What is wrong with the request or the provider becomes an answer in the OpenAI API's error shape. Raises what
        the log raises (``StaleEpoch`` above all). Cancelling the asker, or dropping the answer, cancels nothing.
        """
        path = call.path.partition("?")[0]
        if path == MODELS and call.method == "GET":
            return self._models(call)
        if path != CHAT or call.method != "POST":
            message = f"the gateway has no {call.method} {path}: it answers POST {CHAT} and GET {MODELS}"
            return _error(call, 404, message, kind="invalid_request_error", code="unknown_url")
        request = _request(call.body)
        if isinstance(request, str):
            return _error(call, 400, request, kind="invalid_request_error", code="invalid_value")
        key = (call.run_id, branch, call.key)
        while True:
            turn = self._turns.get(key)
            if turn is not None and call.epoch > turn.call.epoch and not turn.is_of(call):
                await self._stop([turn])  # nobody wants to hear that any more
                continue
            if turn is None:
                # between the look above and this line nothing may wait: one call, one turn
                turn = self._turns[key] = Turn(call)
                is_new = new_at == self.turns_ended  # what is not in flight, and has not ended since, was never begun
                turn.task = asyncio.create_task(self._take(turn, key, call, branch, request, is_new=is_new))
            elif call.epoch > turn.epoch:
                turn.epoch = call.epoch
                if not call.is_first:
                    await self._append(call, branch, _replayed(call, 0), epoch=call.epoch)
            await turn.begun()
            if not turn.lost:
                return Answer(turn.status, turn.headers, turn.read(call.offset))
            if call.offset:
                message = "the answer was cut off when the server ended, and is gone: ask again"
                event = error_event(message, kind="server_error", code=LOST)
                return Answer(200, STREAM_HEADERS, _once(event))

    def _models(self, call: Call) -> Answer:
        data = [
            {"id": provider.model or name, "object": "model", "owned_by": name}
            for name, provider in self._providers.by_name.items()
        ]
        body = msgspec.json.encode({"object": "list", "data": data})
        return Answer(200, JSON_HEADERS, _once(body[call.offset :]))

    async def _take(
        self, turn: Turn, key: tuple[str, int, str], call: Call, branch: int, request: dict[str, Any], *, is_new: bool
    ) -> None:
        """Fill ``turn``, whoever listens. The call stays in flight until its turn is committed or given up."""
        try:
            entries = [] if is_new else valid(await self._log.find(call.run_id, branch, call.key))
            if (committed := _last(entries, "model.committed")) is not None:
                payload = committed.payload
                if call.epoch > _newest_epoch(entries) and not call.is_first:
                    await self._append(call, branch, _replayed(call, committed.seq), epoch=call.epoch)
                body = await self._log.get_blob(payload["body"])
                turn.begin(payload["status"], payload["headers"])
                turn.add(body)
                turn.end()
                return
            if (told := _told(entries)) is not None:
                body = await self._log.get_blob(told["body"])
                turn.begin(told["status"], told["headers"])
                turn.add(body)
                turn.end()
                return
            if call.offset:
                if not entries or entries[-1].payload.get("told") != LOST:
                    await self._append(call, branch, _lost(call), epoch=call.epoch)
                turn.lose()
                return
            if entries and entries[-1].kind == "model.started":
                await self._append(call, branch, _aborted(call, ENDED, 0), epoch=call.epoch)
            await self._ask(turn, call, branch, request, is_new=_last(entries, "model.intent") is None)
        except asyncio.CancelledError:
            turn.fail(Unavailable("the server is ending", hint="ask again"))
            raise
        except Exception as error:  # a task has nobody above it: the askers get the error
            if turn.has_begun:
                turn.break_off(error_event(str(error), kind="server_error", code="gateway-failed"))
            else:
                turn.fail(error)
        finally:
            del self._turns[key]
            self.turns_ended += 1

    async def _ask(self, turn: Turn, call: Call, branch: int, request: dict[str, Any], *, is_new: bool) -> None:
        provider = self._providers.for_model(request.get("model") or "")
        body = call.body
        if not request.get("model"):
            request = {**request, "model": provider.model}
            body = msgspec.json.encode(request)
        pending = [_intent(call, request)] if is_new else []
        asked_at = time.monotonic()

        async def started(attempt: int, after: str) -> None:
            """Right before each request: durable first, so that no request is ever uncounted."""
            payload = {"provider": provider.name, "attempt": attempt} | ({"after": after} if after else {})
            entries = [*pending, NewEntry(kind="model.started", payload=payload, key=call.key)]
            pending.clear()
            # a later attempt goes on although the guest that asked may be gone: it will ask again
            epoch = call.epoch if attempt == 1 else None
            await self._append(call, branch, *entries, epoch=epoch)

        try:
            is_stream = request.get("stream") is True
            name = f"perdure-{call.run_id}-{branch}-{call.key}"
            async for step in self._upstream.ask(provider, body, name=name, stream=is_stream, started=started):
                if not isinstance(step, bytes):
                    status, headers = step
                    if is_stream:
                        turn.begin(status, headers)
                    continue
                turn.add(step)
            summary = summarize(turn.body, stream=is_stream)
            if not summary.finished:
                raise BrokenError("the stream ended before the answer was complete")
        except RefusedError as refusal:
            answer = (refusal.http_status, refusal.headers, refusal.body)
            entry = _aborted(call, refusal.reason, refusal.status, 0, await self._kept(*answer))
            await self._append(call, branch, *pending, entry, epoch=None)
            turn.begin(refusal.http_status, refusal.headers)
            turn.add(refusal.body)
            turn.end()
            return
        except BrokenError as broken:
            received = turn.size
            event = error_event(broken.reason, kind="server_error", code="provider-failed")
            answer = (turn.status, turn.headers, turn.visible + event)
            entry = _aborted(call, broken.reason, 0, received, await self._kept(*answer))
            await self._append(call, branch, entry, epoch=None)
            turn.break_off(event)
            return
        await self._commit(call, branch, turn.body, status, headers, summary, time.monotonic() - asked_at)
        if not is_stream:
            turn.begin(status, headers)
        turn.end()

    async def _kept(self, status: int, headers: Any, body: bytes) -> dict[str, Any]:
        """An answer that is no turn, as its entry has it."""
        return {"status": status, "headers": dict(headers), "body": await self._log.put_blob(body)}

    async def _commit(
        self, call: Call, branch: int, body: bytes, status: int, headers: Any, summary: Summary, seconds: float
    ) -> None:
        """Keep the turn, for as long as that takes: it is paid for, and nothing goes on without it."""
        pause_s = COMMIT_AGAIN_S
        while True:
            try:
                await self._try_commit(call, branch, body, status, headers, summary, seconds)
                return
            except (NoSpace, Unavailable) as error:
                _log.warning("run %s: turn %s cannot be kept yet: %s", call.run_id, call.key, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, COMMIT_AGAIN_MAX_S)

    async def _try_commit(
        self, call: Call, branch: int, body: bytes, status: int, headers: Any, summary: Summary, seconds: float
    ) -> None:
        payload = {
            "status": status,
            "headers": dict(headers),
            "body": await self._log.put_blob(body),
            "bytes": len(body),
            "model": summary.model,
            "usage": {"prompt_tokens": summary.prompt_tokens, "completion_tokens": summary.completion_tokens},
            "seconds": round(seconds, 3),
            "text": summary.text[:TEXT_SHOWN],
        }
        await self._append(call, branch, NewEntry(kind="model.committed", payload=payload, key=call.key), epoch=None)

    async def _append(self, call: Call, branch: int, *entries: NewEntry, epoch: int | None) -> None:
        await self._log.append(call.run_id, entries, epoch=epoch, branch=branch)


def _request(body: bytes) -> dict[str, Any] | str:
    """The decoded request, or what is wrong with it."""
    try:
        request = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        return f"the request's body is not JSON: {error}"
    if not isinstance(request, dict):
        return "the request's body is not a JSON object"
    if not isinstance(request.get("messages"), list) or not request["messages"]:
        return "the request has no messages"
    if not isinstance(request.get("model") or "", str):
        return "the request's model is not a string"
    return request


def _intent(call: Call, request: dict[str, Any]) -> NewEntry:
    rest = {name: value for name, value in request.items() if name not in ("messages", "model", "stream")}
    payload = {
        "request": request_hash(call),
        "model": request["model"],
        "stream": request.get("stream") is True,
        "messages": request["messages"],
        "parameters": rest,
    }
    return NewEntry(kind="model.intent", payload=payload, key=call.key)


def _aborted(call: Call, reason: str, status: int, received: int = 0, answer: dict[str, Any] | None = None) -> NewEntry:
    payload = {"reason": reason, "bytes": received, "status": status} | ({"answer": answer} if answer else {})
    return NewEntry(kind="model.aborted", payload=payload, key=call.key)


def _lost(call: Call) -> NewEntry:
    """The program has a part of an answer of which nothing else is left; it is told, and asks again if it can."""
    entry = _aborted(call, f"{ENDED}: its program has {call.offset} bytes of it, and is told {LOST}", 0, call.offset)
    return NewEntry(kind=entry.kind, payload={**entry.payload, "told": LOST}, key=entry.key)


def _replayed(call: Call, seq: int) -> NewEntry:
    return NewEntry(kind="model.replayed", payload={"seq": seq}, key=call.key)


def _newest_epoch(entries: list[Entry]) -> int:
    """The newest epoch that asked. Commits do not count: they are written in whatever epoch the run then was."""
    return max((entry.epoch for entry in entries if entry.kind in ("model.started", "model.replayed")), default=0)


def _last(entries: list[Entry], kind: str) -> Entry | None:
    return next((entry for entry in reversed(entries) if entry.kind == kind), None)


def _told(entries: list[Entry]) -> dict[str, Any] | None:
    """The answer that a program got instead of a turn, where that was the call's end."""
    end = entries[-1] if entries else None
    return end.payload.get("answer") if end is not None and end.kind == "model.aborted" else None


def _error(call: Call, status: int, message: str, *, kind: str, code: str) -> Answer:
    return Answer(status, JSON_HEADERS, _once(error_body(message, kind=kind, code=code)[call.offset :]))


async def _once(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body
