"""What must hold where logs are dropped after a life: what others have stays, whole, whoever died meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.context.log import digest_of
from perdure.errors import NotFound, PerdureError
from perdure.model import RunInfo
from perdure.testing.crash.people import People
from perdure.testing.crash.workload import LARGE_ALONE, Plan

ALONE = digest_of(LARGE_ALONE.encode())

if TYPE_CHECKING:
    from perdure.testing.crash.life import Life


async def wrong(life: Life, ends: list[tuple[Plan, RunInfo]]) -> list[str]:
    """Drop the logs that plans say, and the large values that only they had. What does not hold, in words."""
    people, found = life.people, []
    going = {info.id for plan, info in ends if plan.is_pruned and (not plan.forks or info.origin)}
    if not going:
        return []
    before = {info.id: await people.read(info.id) for _, info in ends if info.id not in going}
    await people.ask(lambda client: client.blob(ALONE))  # it is there, as the others' are
    for run_id in going:
        await people.prune(run_id)
    await people.sweep()
    for plan, info in ends:
        where = f"{plan.name} ({info.id}), after logs were pruned"
        now = await people.info(info.id)
        if (now.state, now.result, now.error) != (info.state, info.result, info.error):
            found.append(f"{where}: it ended as {now.state} with {now.result!r}, not {info.state} with {info.result!r}")
        if info.id in going:
            continue
        if await people.read(info.id) != before[info.id]:
            found.append(f"{where}: its entries are others")
        try:
            await people.verify(info.id)
        except PerdureError as error:
            found.append(f"{where}: its chain does not verify: {error}")
    return found + [what for run_id in going for what in await _left(people, run_id)]


async def _left(people: People, run_id: str) -> list[str]:
    """Of what is to be gone."""
    found = []
    try:
        await people.verify(run_id)
    except NotFound:
        pass
    else:
        found.append(f"the log of {run_id} was dropped, and is there")
    try:
        await people.ask(lambda client: client.blob(ALONE))
    except NotFound:
        return found
    return [*found, "a large value that nothing refers to any more is kept"]
