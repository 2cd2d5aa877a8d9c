"""The engine against a small model of it: whatever comes in whatever order, the program hears what the model says.

Signals, answers, deadlines, losses of the machine, ends of the server and cancels come at any moment: what is waited
for here is not that the machine is where it should be, only that the waits are open that the model has open.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
from collections.abc import Awaitable
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from perdure.context.log import Head
from perdure.errors import Conflict
from perdure.model import RunState
from perdure.runs.record import from_head
from perdure.testing.clock import FakeClock
from perdure.testing.house import QUICK, House
from perdure.testing.machines import Ask
from perdure.testing.memory_fixtures import memory_folder
from perdure.testing.programs import Steps

NAMES = st.sampled_from("ab")
SOON_S, LATE_S, ROUND_S = 1000.0, 2000.0, 1500.0  # one round of waiting passes the first, two pass the second
LOSSES_MAX = 3  # in a row: more of one kind end a run
HANGS_S = 60.0  # of the host's clock: what takes longer hangs

part = st.one_of(
    st.builds(lambda name: {"kind": "signal", "name": name}, NAMES),
    st.just({"kind": "approval", "prompt": "?"}),
    st.just({"kind": "time", "seconds": SOON_S}),
)
command = st.one_of(
    st.builds(lambda body: ["wait", body], part),
    st.builds(lambda body: ["wait", {**body, "timeout_s": LATE_S}], part.filter(lambda body: body["kind"] != "time")),
    st.builds(
        lambda mode, waits, late: [
            "wait/set",
            {"mode": mode, "waits": waits, **({"timeout_s": LATE_S} if late else {})},
        ],
        st.sampled_from(["all", "any"]),
        st.lists(part, min_size=1, max_size=3).filter(
            lambda waits: sum(body["kind"] == "time" for body in waits) < 2  # two at one moment have no order
        ),
        st.booleans(),
    ),
)


def told(answer: Any) -> Any:
    """What a program makes of an answer: what the model can know."""
    if answer is None or answer["kind"] == "time":
        return answer and "time"
    if answer["kind"] in ("all", "any"):
        return [answer["order"], [told(one) for one in answer["waits"]], answer["timed_out"]]
    return "late" if answer["timed_out"] else answer.get("value", answer.get("by"))


def program() -> Steps:
    """Does what it is told by signals, and gives back all that it heard."""
    heard = []
    while True:
        said = yield Ask("wait", {"kind": "signal", "name": "next"})
        if said.value.get("value") in (None, "end"):
            break
        answer = yield Ask(*said.value["value"])
        heard.append(told(answer.value) if answer.status == 200 else answer.value)
    yield Ask("complete", {"result": heard})


class Model:
    """What is open, what was kept, and what the program heard."""

    def __init__(self) -> None:
        self.mode = ""  # of the call that waits: one, all, any; nothing: the program waits for its next command
        self.parts: list[dict[str, Any]] = []
        self.found: list[Any] = []
        self.order: list[int] = []
        self.rounds = 0
        self.has_timeout = False
        self.kept: list[tuple[str, int]] = []
        self.heard: list[Any] = []

    def begin(self, path: str, body: dict[str, Any]) -> None:
        self.mode, self.parts = (body["mode"], body["waits"]) if path == "wait/set" else ("one", [body])
        self.found, self.order, self.rounds = [None] * len(self.parts), [], 0
        self.has_timeout = "timeout_s" in body
        for index, asked in enumerate(self.parts):
            kept = next((one for one in self.kept if asked["kind"] == "signal" and one[0] == asked["name"]), None)
            if kept and self.mode:
                self.kept.remove(kept)
                self.come(index, kept[1])

    def first(self, kind: str, name: str = "") -> int | None:
        """The oldest open part of this kind."""
        for index, asked in enumerate(self.parts if self.mode else ()):
            if index not in self.order and asked["kind"] == kind and asked.get("name", "") == name:
                return index
        return None

    def come(self, index: int, value: Any) -> None:
        self.order.append(index)
        self.found[index] = value
        if self.mode != "all" or len(self.order) == len(self.parts):
            self.end(late=False)

    def end(self, *, late: bool) -> None:
        single = "late" if late else self.found[0]
        self.heard.append(single if self.mode == "one" else [self.order, self.found, late])
        self.mode = ""

    def round(self) -> None:
        self.rounds += 1
        soon = self.first("time")
        if soon is not None:
            self.come(soon, "time")
        if self.mode and self.has_timeout and self.rounds >= 2:
            self.end(late=True)

    def open(self) -> list[str]:
        if not self.mode:
            return ["signal"]
        left = [asked["kind"] for index, asked in enumerate(self.parts) if index not in self.order]
        return sorted(left if self.mode == "one" else [self.mode, *left])


class Engine(RuleBasedStateMachine):
    """One run, and all that may happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.left = contextlib.ExitStack()
        self.folder = self.left.enter_context(memory_folder())
        self.model, self.state = Model(), RunState.COMPLETED
        self.count = self.losses = 0
        self.ids: set[str] = set()
        self.loop.run_until_complete(self._told(self._up()))

    async def _up(self) -> None:
        self.clock = FakeClock()
        self.house = House(self.folder, "http://127.0.0.1:1/v1")
        self.house.settings, self.house.clock = dataclasses.replace(QUICK, shelve_after_s=0.0), self.clock
        await self.house.up()
        self.run_id = await self.house.start(program)
        await self._settle()

    @property
    def is_going(self) -> bool:
        return self.state is not RunState.CANCELLED

    async def _until(self, true: Any) -> Head:
        """Time passes by and by: what is tried again after a pause is."""
        for turn in range(10_000):
            head = await self.house.context.head(self.run_id)
            if true(from_head(head)):
                return head
            if turn % 20 == 19:
                self.clock.move(0.05)
            await asyncio.sleep(0.001)
        raise AssertionError(f"{self.model.open()} is not reached: {head.value}")

    async def _settle(self) -> None:
        wanted = self.model.open()
        await self._until(lambda record: sorted(wait.kind for wait in record.waits.open) == wanted)

    def _do(self, act: Any) -> None:
        async def settled() -> None:
            await act()
            if self.is_going:
                await self._settle()

        self.loop.run_until_complete(self._told(settled()))

    async def _told(self, act: Awaitable[None]) -> None:
        """Where it hangs, if it does."""
        try:
            async with asyncio.timeout(HANGS_S):
                await act
        except TimeoutError:
            text = io.StringIO()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.print_stack(file=text)
            raise AssertionError(f"{self.model.open()} is not reached in {HANGS_S:g} s:\n{text.getvalue()}") from None

    @precondition(lambda self: self.is_going and not self.model.mode)
    @rule(asked=command)
    def wait(self, asked: list[Any]) -> None:
        self.losses = 0
        self.model.begin(*asked)
        self._do(lambda: self.house.engine.signal(self.run_id, "next", asked))

    @rule(name=NAMES, number=st.sampled_from([None, 1, 2]))
    def signal(self, name: str, number: int | None) -> None:
        self.count += 1
        signal_id, value = None if number is None else f"id{number}", self.count

        async def send() -> None:
            if not self.is_going:
                with pytest.raises(Conflict, match="has ended"):
                    await self.house.engine.signal(self.run_id, name, value, signal_id)
                return
            await self.house.engine.signal(self.run_id, name, value, signal_id)

        if self.is_going and signal_id not in self.ids:
            index = self.model.first("signal", name)
            if index is None:
                self.model.kept.append((name, value))
            else:
                self.model.come(index, value)
        self.ids |= {signal_id} - {None} if self.is_going else set()  # type: ignore[arg-type]
        self._do(send)

    @rule()
    def approve(self) -> None:
        self.count += 1
        index = self.model.first("approval") if self.is_going else None
        is_one = index is not None and sum(k == "approval" for k in self.model.open()) == 1
        if index is not None and is_one:
            self.model.come(index, str(self.count))

        async def answer() -> None:
            try:
                await self.house.engine.approve(self.run_id, None, approved=True, by=str(self.count))
                assert is_one
            except Conflict:
                assert not is_one

        self._do(answer)

    @precondition(lambda self: self.is_going)
    @rule()
    def a_round_of_time(self) -> None:
        self.model.round()

        async def move() -> None:
            self.clock.move(ROUND_S)

        self._do(move)

    @precondition(lambda self: self.is_going)
    @rule()
    def it_falls_asleep(self) -> None:
        async def sleep() -> None:
            self.clock.move(1.0)
            await self._until(lambda record: record.state is RunState.SUSPENDED)

        self._do(sleep)

    @rule()
    def the_server_ends(self) -> None:
        self._do(self.house.restart)

    @precondition(lambda self: self.is_going and self.losses < LOSSES_MAX)
    @rule(all_of_it=st.booleans())
    def the_machine_is_lost(self, all_of_it: bool) -> None:
        self.losses += 1

        async def lose() -> None:
            for sandbox_id in list(self.house.machines.sandboxes):
                await self.house.machines.kill(sandbox_id)
            if all_of_it:  # what it was captured as, too
                self.house.machines.sandboxes.clear()

        self._do(lose)

    @precondition(lambda self: self.is_going and self.count > 6)  # not so soon that nothing else was tried
    @rule()
    def cancel(self) -> None:
        self.state = RunState.CANCELLED
        self._do(lambda: self.house.engine.cancel(self.run_id, clean_up_s=0))

    def teardown(self) -> None:
        with self.left, contextlib.closing(self.loop):
            try:
                self.loop.run_until_complete(self._told(self._end()))
            finally:  # also after a failure: there may be many, and each house has threads and files
                self.loop.run_until_complete(self._told(self._close()))

    async def _end(self) -> None:
        engine = self.house.engine
        while self.is_going and self.model.mode:  # let everything come
            self.model.round()
            self.clock.move(ROUND_S)
            await self._settle()
            for index, asked in enumerate(self.model.parts):
                if self.model.mode and index not in self.model.order and asked["kind"] != "time":
                    await self._give(asked)
                    self.model.come(index, asked["kind"])
                    await self._settle()
        if self.is_going:
            await engine.signal(self.run_id, "next", "end")
        head = await self._until(lambda record: record.released)
        record = from_head(head)
        assert record.state is self.state
        assert record.result == (self.model.heard if self.is_going else None)
        entries = await self.house.entries(self.run_id)
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
        completed = [entry.payload["wait"] for entry in entries if entry.kind == "wait.completed"]
        assert len(completed) == len(set(completed))
        assert "diverged" not in {entry.kind for entry in entries}
        await self.house.context.verify(self.run_id)

    async def _close(self) -> None:
        await self.house.machines.close()
        await self.house.down()

    async def _give(self, asked: dict[str, Any]) -> None:
        if asked["kind"] == "signal":
            await self.house.engine.signal(self.run_id, asked["name"], "signal")
            return
        record = from_head(await self.house.context.head(self.run_id))
        oldest = next(wait for wait in record.waits.open if wait.kind == "approval")
        await self.house.engine.approve(self.run_id, oldest.id, approved=True, by="approval")


@pytest.mark.hypothesis
def test_the_engine_does_what_its_model_says() -> None:
    # A failure is found again by its blob. To shrink it takes longer than a test may.
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    few = settings(max_examples=settings().max_examples // 2, stateful_step_count=40, phases=phases)
    run_state_machine_as_test(Engine, settings=few)
