"""Back in time on the replay road: there is only the log, and it is enough."""

from __future__ import annotations

from perdure.testing.house import Provider
from perdure.testing.workers import WorkerHouse

AGENT = """
@agent(durability="replay")
def f(ctx: Context) -> list[str]:
    draft = ctx.chat("draft", max_tokens=8).text
    paid = ctx.step("pay", lambda: "paid")
    verdict = ctx.approval("Publish?")
    said = ctx.chat(verdict.comment, max_tokens=8).text
    return [draft, paid, said]
"""


async def decision(road: WorkerHouse, run_id: str) -> int:
    """The position right before the answer."""
    return (await road.until(run_id, "wait.completed")).seq - 1


async def test_a_rewind_after_the_end_and_a_fork(road: WorkerHouse, provider: Provider) -> None:
    run_id = await road.start(AGENT)
    await road.until(run_id, "wait.started")
    await road.engine.approve(run_id, None, approved=True, comment="one")
    assert await road.result(run_id) == ["answer to draft", "paid", "answer to one"]
    at = await decision(road, run_id)

    (fork,) = await road.engine.fork(run_id, at=at)
    await road.engine.approve(fork.id, None, approved=True, comment="two")
    assert await road.result(fork.id) == ["answer to draft", "paid", "answer to two"]

    assert (await road.engine.rewind(run_id, at)).state == "recovering"
    await road.engine.approve(run_id, None, approved=True, comment="three")
    assert await road.result(run_id) == ["answer to draft", "paid", "answer to three"]
    assert provider.requests == 4  # the draft once, and what each way asked
    assert len(await road.entries(fork.id, "step.intent")) == 1
    for one in (run_id, fork.id):
        await road.log.verify(one)
