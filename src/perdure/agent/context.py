"""``Context``: what a function that is an agent can ask of the host."""

from __future__ import annotations

import time

from perdure.agent import calls, completion, later, tools
from perdure.agent.door import Door, retry_s
from perdure.agent.http1 import AnswerReader
from perdure.agent.secret import Secret
from perdure.agent.steps import Attempts, arguments, outcome
from perdure.agent.tools import Tool
from perdure.agent.values import to_json
from perdure.errors import InvalidValue, ProviderFailed, StepFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from perdure.agent.declaration import Agent
    from perdure.agent.generic import P, R
    from perdure.agent.later import Wait
    from perdure.agent.tools import Doubt, Effect
    from perdure.agent.values import Duration, Field, Forks, Moment, ToolCall, Turn, Verdict

    Messages = str | list[dict[str, Any]]


class Stream:
    """The pieces of a model's answer as it says them. ``turn`` is the whole answer once they have ended."""

    def __init__(self, pieces: Iterator[str | Turn]) -> None:
        self._pieces = pieces
        self._turn: Turn | None = None

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if isinstance(piece, str):
                yield piece
            else:
                self._turn = piece

    @property
    def turn(self) -> Turn:
        """The whole turn; what was not iterated yet is read first."""
        for _ in self:
            pass
        if self._turn is None:
            raise ProviderFailed("this stream failed before its end")
        return self._turn


class Context:
    """The host, as an agent's function sees it. Every method may take days: the machine sleeps meanwhile.

    run_id: the run's id. later: waits as values, for ``all`` and ``any``. All methods raise the errors of
    ``perdure.errors`` that the host answers.
    """

    later = later.Later()

    def __init__(self, run_id: str, lane: calls.Lane, door: Door) -> None:
        self.run_id = run_id
        self._lane = lane
        self._door = door

    def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        on_delta: Callable[[str], Any] | None = None,
        **parameters: Any,
    ) -> Turn:
        """One turn of a model. ``messages``: OpenAI messages, or a string for one of the user's.

        model: None for the provider's own. on_delta is called with each piece of text as it comes. ``parameters`` are
        passed on (temperature, max_tokens …). Of ``tools`` those that are functions are described to the model; what it
        wants of them is in the turn's ``tool_calls`` (see ``use``). An answered turn is never asked again.
        ``ProviderFailed``; also where a server died while it streamed, and the model, asked again, does not begin with
        what was told already (without on_delta nothing was told yet, and the new answer is taken).
        """
        stream = Stream(self._chat(messages, model, on_delta is not None, parameters))
        for delta in stream:
            if on_delta is not None:
                on_delta(delta)
        return stream.turn

    def chat_stream(self, messages: Messages, *, model: str | None = None, **parameters: Any) -> Stream:
        """The same, to iterate: ``for piece in (stream := ctx.chat_stream(...))``, then ``stream.turn``."""
        return Stream(self._chat(messages, model, True, parameters))

    def _chat(
        self, messages: Messages, model: str | None, is_stream: bool, parameters: dict[str, Any]
    ) -> Iterator[str | Turn]:
        parameters, known = tools.offered(parameters)
        for tool in known.values():
            tools.refuse_coroutine(tool)
        body = completion.request(messages, model, is_stream, parameters)
        ordinal = self._lane.take()
        said, failures = "", 0
        while True:
            retelling = completion.Retelling(said)
            try:
                reader = AnswerReader()
                answer = completion.Completion(is_stream)
                for piece in self._door.stream(reader, completion.PATH, self._lane, ordinal, body):
                    answer.expect(reader.status)
                    for delta in answer.feed(piece):
                        if fresh := retelling.fresh(delta):
                            said += fresh
                            yield fresh
                yield answer.turn(reader.status, known)
                return
            except OSError:  # the connection, or a stream that died with a server: the same key is asked again
                failures += 1
                time.sleep(retry_s(failures))

    def step(
        self,
        name: str,
        function: Callable[..., R],
        *args: Any,
        on_doubt: str = "retry",
        retries: int = 0,
        backoff: Duration = "1s",
        backoff_max: Duration = "10m",
        retry_on: Any = Exception,
        **kwargs: Any,
    ) -> R:
        """Run ``function`` once for all: its result is recorded, and answered from the log afterwards.

        on_doubt says what happens where a crash came between its effect and its record: "retry" (the function is safe
        to repeat; a parameter ``idempotency_key`` gets a key that stays the same), "ask" a person, or "fail". Results
        are JSON values or dataclasses. ``StepFailed`` when it raised, now or before.

        retries: attempts after the first, each recorded, where it raised one of ``retry_on`` (a type or its name, or
        several). They wait for ``backoff``, then twice as long each time, at most ``backoff_max``, as ``sleep`` does.
        """
        attempts = Attempts(retries, backoff, backoff_max, retry_on)
        result: R = self._step(calls.step(name, on_doubt), attempts, function, args, kwargs)
        return result

    def _step(
        self,
        asked: dict[str, Any],
        attempts: Attempts,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        name = asked["name"]
        while True:
            ordinal = self._lane.take()
            state = self._door.call(self._lane, "step", attempts.begin(asked, self._lane, ordinal), ordinal)
            if state["status"] == "run":
                self._lane.step = name
                try:
                    result = function(*args, **arguments(function, kwargs, state))
                    end = {"result": to_json(result, f"step {name!r}: its result")}
                except Exception as problem:
                    end = {"error": calls.error(problem)}
                finally:
                    self._lane.step = ""
                state = self._door.call(self._lane, "step/end", end, ordinal)
            try:
                return outcome(name, function, state)
            except StepFailed as failure:
                pause_s = attempts.pause_s(failure)
            self.sleep(pause_s)

    def tool(
        self, function: Callable[P, R], *, effect: Effect = "once", name: str = "", on_doubt: Doubt | None = None
    ) -> Tool[P, R]:
        """``function`` with its effect declared: a tool that is called as the function is, by you or by a model
        (``chat(tools=[...])``, ``use``), and each call of which is a step.

        effect says what happens where a crash came between it and its record. "read-only": there is none, it is done
        again. "idempotent": it is done again; a parameter ``idempotency_key`` gets a key that stays the same. "once":
        a person is asked, or with on_doubt="fail" it fails. What it takes and returns is JSON, or dataclasses.
        ``StepFailed`` when it raised. A tool that itself asks ``ctx`` is to be a plain function: steps hold no steps.
        """
        tools.refuse_coroutine(function)
        return Tool(function, self._do, effect=effect, name=name, on_doubt=on_doubt)

    def _do(self, tool: Tool[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._step(tools.asked(tool, args, kwargs), Attempts(), tool.function, args, kwargs)

    def use(self, call: ToolCall) -> dict[str, Any]:
        """Use the tool that a model called, one of ``turn.tool_calls``: the message for it with what the tool gave.

        What goes wrong is told to the model in that message: a tool that is not there, arguments that do not fit, what
        the function raised. Only what ``on_doubt="fail"`` is declared for is raised.
        """
        caught: tuple[type[Exception], ...] = (InvalidValue,)
        try:
            function, given = tools.found(call)
            caught = tools.told_to_model(function)
            return tools.answer(call, function(**given))
        except caught as problem:
            return tools.refusal(call, problem)

    def sleep(self, duration: Duration) -> None:
        """Wait for seconds, or ``"90s"``, ``"15m"``, ``"3d"``."""
        self._door.call(self._lane, "wait", calls.sleep(duration))

    def sleep_until(self, moment: Moment) -> None:
        """Wait until a moment: ``"2026-05-01T09:00:00+02:00"``, a datetime with a time zone, or seconds since 1970."""
        self._door.call(self._lane, "wait", calls.sleep_until(moment))

    def wait_for(self, name: str, *, timeout: Duration | None = None) -> Any:
        """Wait for a signal and return its value (``perdure signal RUN NAME VALUE``). ``TimeoutError``."""
        return calls.signalled(name, self._door.call(self._lane, "wait", calls.signal(name, timeout)))

    def approval(
        self, prompt: str, *, show: Any = None, form: list[Field] | None = None, timeout: Duration | None = None
    ) -> Verdict:
        """Ask a person (``perdure approve RUN``). ``show``: what they are to look at. Late is not approved.

        form: ``[Field("amount", "number"), ...]``, filled in with ``--set amount=3``; checked, then in ``.values``.
        """
        return calls.verdict(self._door.call(self._lane, "wait", calls.approval(prompt, show, form, timeout)))

    def run(self, agent: Agent[R], /, **input: Any) -> R:
        """Run another agent of this file as a run of its own, on the image that it declares, and return its result.

        It is started once, whatever becomes of this run's machine, and cancelled with this run. ``ChildFailed``.
        """
        result: R = calls.returned(agent, self._door.call(self._lane, "wait", calls.child(agent, input)))
        return result

    def fork(self, count: int = 1) -> Forks:
        """Make ``count`` runs of this one, which go on from here as it does: with its memory, its files and its log.

        It returns once in each: ``number`` is 0 here, and 1 to ``count`` in the forks; ``runs`` are their ids. Each is
        a run of its own, that this one may wait for (``result``) or not; ``run_id`` is its own. Not within a step.
        """
        said = self._door.call(self._lane, "fork", calls.fork(count))
        self.run_id = said["run_id"]
        return calls.forked(said)

    def result(self, run: str, *, timeout: Duration | None = None) -> Any:
        """Wait for the end of a fork that this run made, one of ``fork(...).runs``, and return its result.

        ``ChildFailed`` where it failed or was cancelled. ``TimeoutError``: it goes on all the same.
        """
        return calls.resulted(run, self._door.call(self._lane, "wait", calls.result(run, timeout)))

    def all(self, *waits: Wait, timeout: Duration | None = None) -> list[Any]:
        """Wait for all of ``waits`` at once, ``ctx.later.wait_for("go")`` and the like; their values, in this order.

        ``TimeoutError`` when not all came in time; what came is in the log.
        """
        if not waits:
            return []
        return later.all_of(waits, self._door.call(self._lane, "wait/set", later.request("all", waits, timeout)))

    def any(self, *waits: Wait, timeout: Duration | None = None) -> tuple[int, Any]:
        """Wait for the first of ``waits``: its place among them, and its value. The others are over, too.

        ``which, value = ctx.any(ctx.later.wait_for("stop"), ctx.later.approval("Go on?"))``. ``TimeoutError``.
        """
        return later.any_of(waits, self._door.call(self._lane, "wait/set", later.request("any", waits, timeout)))

    def now(self) -> float:
        """Seconds since 1970. Recorded: whoever runs this again gets the same."""
        return float(self._door.call(self._lane, "value", {"of": "now"})["value"])

    def random(self) -> float:
        """A number from 0 up to 1, and not 1. Recorded, as ``now`` is."""
        return float(self._door.call(self._lane, "value", {"of": "random"})["value"])

    def uuid(self) -> str:
        """A random UUID as text. Recorded, as ``now`` is."""
        return str(self._door.call(self._lane, "value", {"of": "uuid"})["value"])

    def emit(self, name: str, value: Any = None) -> None:
        """Tell whoever follows the run (``perdure log RUN --follow``)."""
        self._door.call(self._lane, "emit", calls.emit(name, value))

    def signal(self, run: str, name: str, value: Any = None) -> None:
        """Send another run (its id, or name) a signal, once: also where this call is lived through again."""
        self._door.call(self._lane, "signal", calls.send(run, name, value))

    def secret(self, name: str) -> Secret:
        """A host that is reached with a secret of the server's, by the URL in ``.url``: what is asked below that goes
        there, with the secret put in outside of here. Nothing of it is recorded: what a tool does belongs in a step.
        """
        return Secret(name, self._door.url())

    def checkpoint(self, *, keep: bool = False) -> None:
        """Capture the machine here: what is lost later goes on from this moment. keep: not given up for newer ones."""
        self._door.call(self._lane, "checkpoint", {"keep": keep})

    def messages(self, *new: dict[str, Any]) -> list[dict[str, Any]]:
        """Record ``new`` messages in the run's context log; all that are recorded by now, as ``chat`` takes them."""
        for message in new:
            self._door.call(self._lane, "message", calls.message(message))
        found: list[dict[str, Any]] = self._door.call(self._lane, "messages", {})["messages"]
        return found
