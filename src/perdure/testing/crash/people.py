"""What people do in a life: they start runs, answer them, and watch. Each asks again until it is answered."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from perdure.client.server import ServerClient
from perdure.errors import Conflict, NotFound, PerdureError, Unavailable
from perdure.host.paths import Home
from perdure.model import Entry, RunInfo, RunState
from perdure.testing.crash.listener import STATES
from perdure.testing.crash.workload import Plan

Result = TypeVar("Result")
Place = tuple[str, int, int]  # run, branch, seq

ENDED = (RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED)
LOOK_S = 0.1
QUEUE = "line"  # and a schedule of the same name
AGAIN_S = 0.03
LONG_S = 1e9  # longer than anything here: in seconds before now a moment that was
SWEEPS = 3
ONCE = {"once": "yes"}  # a tag


@dataclass
class People:
    """``acknowledged``: kinds of entries that must be there, each with what its payload must have, as people were told
    that it was done. ``seen``: every entry that a reader of the logs was ever shown."""

    home: Home
    ledger: Path
    acknowledged: list[tuple[str, str, str]] = field(default_factory=list)  # run, kind, part of the payload
    seen: dict[Place, str] = field(default_factory=dict)
    hook: str = ""  # a url that a run brings along
    hooked: set[str] = field(default_factory=set)  # runs that did

    def __post_init__(self) -> None:
        self._client = ServerClient(self.home)

    async def ask(self, work: Callable[[ServerClient], Result]) -> Result:
        while True:
            try:
                return await asyncio.to_thread(work, self._client)
            except (Unavailable, OSError):
                await asyncio.sleep(AGAIN_S)

    async def prepare(self) -> None:
        """A queue, and a schedule that nothing is due of."""
        await self._once(lambda client: client.queues.create(QUEUE, concurrency=1), Conflict)
        request = {"image": "image", "command": ["crash"]}
        await self._once(lambda client: client.schedules.create(QUEUE, request, every_s=1e6), Conflict)

    async def tidy_up(self) -> None:
        await self._once(lambda client: client.queues.remove(QUEUE), NotFound)
        await self._once(lambda client: client.schedules.remove(QUEUE), NotFound)

    async def _once(self, work: Callable[[ServerClient], Any], done: type[PerdureError]) -> None:
        try:
            await self.ask(work)
        except done:
            pass  # by a former server that could not say so

    async def see_through(self, plan: Plan) -> list[RunInfo]:
        """Start it, and do what it waits for until it has ended; also its forks."""
        request = {"image": "image", "source": "crash", "file": "crash.py", "function": plan.name}
        asked = {**request, "key": plan.name, "policy": plan.policy, **plan.more}
        if plan.takes_ledger:
            asked["input"] = {"ledger": str(self.ledger)}
        if plan.brings_hook:
            asked["hooks"] = [{"url": self.hook, "states": list(STATES)}]
        run_id = await (self._start_once if plan.again else self._start)(asked)
        self.acknowledged.append((run_id, "run.queued", plan.name))
        if plan.brings_hook:
            self.hooked.add(run_id)
        for name in plan.early:
            await self._signal(run_id, name, "early")
        ended = await self._accompany(plan, run_id, forks=plan.forks)
        if plan.tags:
            await self.ask(lambda client: client.tag(run_id, plan.tags))
            self.acknowledged += [(run_id, "tagged", value) for value in plan.tags.values()]
        if plan.budget:
            await self.ask(lambda client: client.set_budget(run_id, **plan.budget))
            self.acknowledged += [(run_id, "budget", f'"{limit}": {most}') for limit, most in plan.budget.items()]
        if plan.again:
            run_id = await self._start({**asked, "key_ttl_s": LONG_S})
            self.acknowledged.append((run_id, "run.queued", plan.name))
            ended += await self._accompany(plan, run_id, forks=0)
        return ended

    async def _start(self, asked: dict[str, Any]) -> str:
        """Its key says that it is the same one where it is asked for again."""
        return (await self.ask(lambda client: client._info("POST", "/v1/runs", asked))).id

    async def _start_once(self, asked: dict[str, Any]) -> str:
        """Its key is over soon: who is not told of the run looks for it first."""

        def work(client: ServerClient) -> RunInfo:
            made = client.runs(tags=ONCE)
            return made[0] if made else client._info("POST", "/v1/runs", {**asked, "tags": ONCE})

        return (await self.ask(work)).id

    async def info(self, run_id: str) -> RunInfo:
        return await self.ask(lambda client: client.get(run_id))

    async def lineage(self, run_id: str) -> list[Entry]:
        """What its current branch has, also from those that it comes from."""
        return await self.ask(lambda client: list(client.entries(run_id, compact=True)))

    async def verify(self, run_id: str) -> int:
        """How many entries its chains have. ProtocolError: one does not hold."""
        return int((await self.ask(lambda client: client.verify(run_id)))["entries"])

    async def prune(self, run_id: str) -> None:
        """Drop its log."""
        while True:
            try:
                await self.ask(lambda client: client.prune(run_id))
            except Conflict as error:
                if "pruned already" not in str(error):
                    await asyncio.sleep(AGAIN_S)  # what is left of its sandbox is being removed
                    continue
            return  # also where a former server did it that could not say so

    async def sweep(self) -> None:
        """Let go of large values that nothing refers to: those of the sweep before the last."""
        for _ in range(SWEEPS):
            await self.ask(lambda client: client.prune_older(LONG_S))

    async def _accompany(self, plan: Plan, run_id: str, *, forks: int) -> list[RunInfo]:
        watching, others = asyncio.create_task(self._watch(run_id)), list[asyncio.Task[list[RunInfo]]]()
        try:
            while True:
                info = await self.ask(lambda client: client.get(run_id, wait_s=LOOK_S))
                if info.state in ENDED:
                    return [info, *itertools.chain.from_iterable([await other for other in others])]
                if forks and info.state is RunState.SUSPENDED:
                    made = await self._fork(run_id, forks)
                    others += [asyncio.create_task(self._accompany(plan, fork, forks=0)) for fork in made]
                    forks = 0
                elif plan.cancel and info.state == plan.cancel:
                    await self._cancel(run_id)
                for wait in info.waits:
                    if wait["name"] not in plan.asleep or info.state is RunState.SUSPENDED:
                        await self._answer(plan, run_id, wait)
        finally:
            for task in (watching, *others):
                task.cancel()
            await asyncio.wait({watching, *others})

    async def _cancel(self, run_id: str) -> None:
        try:
            await self.ask(lambda client: client.cancel(run_id, reason="enough"))
        except Conflict:
            pass  # it was, by a former server that could not say so
        self.acknowledged.append((run_id, "ending", "enough"))

    async def _fork(self, run_id: str, count: int) -> list[str]:
        """Fork it, and take it back to its turn. Who is not told of the forks asks again with their key."""
        made = [fork.id for fork in await self.ask(lambda client: client.fork(run_id, count=count, key="forks"))]
        there = [run.id for run in await self.ask(lambda client: client.runs()) if _is_fork_of(run, run_id)]
        if sorted(there) != sorted(made):
            raise AssertionError(f"run {run_id} has the forks {there}, and its key those of {made}")
        self.acknowledged += [(fork, "forked", run_id) for fork in made]
        turn = next(e["seq"] for e in (await self.read(run_id)).values() if e["kind"] == "model.committed")
        await self.ask(lambda client: client.rewind(run_id, turn, key="back"))
        self.acknowledged.append((run_id, "rewound", "suspended"))
        return made

    async def _answer(self, plan: Plan, run_id: str, wait: dict[str, Any]) -> None:
        if wait["kind"] in ("approval", "doubt"):
            try:
                await self.ask(lambda client: client.approve(run_id, wait_id=wait["id"], approved=True, by="ann"))
            except Conflict:
                pass  # it was, or nobody waits for it any more
            else:
                self.acknowledged.append((run_id, "wait.completed", wait["id"]))
        elif wait["kind"] == "signal" and wait["name"] in plan.signals:
            await self._signal(run_id, wait["name"], wait["id"])

    async def _signal(self, run_id: str, name: str, signal_id: str) -> None:
        try:
            await self.ask(lambda client: client.signal(run_id, name, name, id=f"{name}-{signal_id}"))
        except Conflict:
            return  # it has ended
        self.acknowledged.append((run_id, "signal", f"{name}-{signal_id}"))

    async def _watch(self, run_id: str) -> None:
        """Follow the log of a run, and go on where it was broken off."""
        after, connector = 0, aiohttp.UnixConnector(str(self.home.socket("perdured")))
        timeout = aiohttp.ClientTimeout(total=None, sock_read=10)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            while True:
                try:
                    url = f"http://localhost/v1/runs/{run_id}/entries"
                    query = {"follow": "1", "after": str(after)}
                    async with session.get(url, params=query) as answer:
                        async for line in answer.content:
                            if line.strip():
                                after = self._see(json.loads(line)) or after
                except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
                    pass  # it died, or is not up yet
                await asyncio.sleep(AGAIN_S)

    def _see(self, entry: dict[str, Any]) -> int:
        if "kind" not in entry:
            return 0  # an error at the end
        place = entry["run_id"], entry["branch"], entry["seq"]
        self.seen.setdefault(place, as_line(entry))
        return int(entry["seq"])

    async def read(self, run_id: str) -> dict[Place, dict[str, Any]]:
        """All entries of all branches."""

        def work(client: ServerClient) -> dict[Place, dict[str, Any]]:
            found: dict[Place, dict[str, Any]] = {}
            transport = client._transport
            for branch in transport.call("GET", f"/v1/runs/{run_id}/branches")["branches"]:
                query = {"branch": branch["branch"]}
                with transport.open("GET", f"/v1/runs/{run_id}/entries", query=query) as answer:
                    for entry in answer.lines():
                        found[entry["run_id"], entry["branch"], entry["seq"]] = entry
            return found

        return await self.ask(work)


def as_line(entry: dict[str, Any]) -> str:
    """An entry, to be compared."""
    return json.dumps(entry, sort_keys=True)


def _is_fork_of(run: RunInfo, run_id: str) -> bool:
    return run.origin is not None and run.origin.run_id == run_id
