"""The example of best-of-N, whole: its agent in workers, its other half at the server's API."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

from perdure.client.server import ServerClient
from perdure.model import RunState
from perdure.runs.record import StartRequest
from perdure.testing.house import Provider
from perdure.testing.workers import WorkerHouse

EXAMPLE = Path(__file__).parents[3] / "examples" / "best_of.py"


def example() -> Any:
    spec = importlib.util.spec_from_file_location("best_of_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_best_of_three_is_kept_and_the_others_end(road: WorkerHouse, provider: Provider) -> None:
    module = example()
    request = StartRequest(
        source=EXAMPLE.read_text(), file=EXAMPLE.name, function="slogan", input={"topic": "owls"}, durability="replay"
    )
    info, _ = await road.engine.start(request)
    await road.until(info.id, "wait.started")
    server = ServerClient(road.home)
    kept = await asyncio.wait_for(
        asyncio.to_thread(module.best_of, server, info.id, module.WAYS, lambda text: text.count("sailor")), 60
    )
    assert kept["way"] == "in the words of a sailor"
    assert "sailor" in kept["result"]
    assert provider.requests == 1 + len(module.WAYS)  # the facts once
    (tree,) = await road.engine.trees()
    forks = tree["forks"]
    assert [fork["id"] for fork in forks if fork["state"] == RunState.COMPLETED] == [kept["run"]]
    assert {tree["state"], *(f["state"] for f in forks if f["id"] != kept["run"])} == {RunState.CANCELLED}
    for one in (tree, *forks):
        await road.log.verify(one["id"])
