"""The health of a sandbox around the real guestd: probes run in it, and what they say is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from perdure.errors import InvalidValue
from perdure.execution.images.image import ImageConfig
from perdure.execution.sandboxes import workload
from perdure.model import Health, HealthCheck, NodeEvent, SandboxSpec, SandboxState

from .conftest import DEADLINE_S, Guest
from .test_sandbox import World

SOON_S = 0.02


async def until(condition: Callable[[], bool]) -> None:
    """A probe that changes nothing is told nowhere: so it is looked for."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - as said
            await asyncio.sleep(SOON_S)


class Patient:
    """A running sandbox, and the events about its health."""

    def __init__(self, world: World) -> None:
        self.world, self.box = world, world.box
        self.events: AsyncIterator[NodeEvent] = world.every.events.read(follow=True, since=0.0)

    async def runs(self, check: HealthCheck) -> None:
        spec = msgspec.structs.replace(self.box.record.spec, health=check, auto_remove=False)
        self.box.record = msgspec.structs.replace(self.box.record, spec=spec)
        await self.world.main("echo up; read line")

    async def becomes(self, status: str) -> Health:
        async with asyncio.timeout(DEADLINE_S):
            async for event in self.events:
                if event.kind == f"sandbox.health_status: {status}":
                    break
        health = self.box.info().health
        assert health is not None and health.status == status
        return health

    async def looked_at(self, times: int) -> Health:
        """Its health once it was probed so often."""
        await until(lambda: (health := self.box.info().health) is not None and len(health.probes) >= times)
        health = self.box.info().health
        assert health is not None
        return health


@pytest.fixture
async def patient(tmp_path: Path, guest: Guest) -> AsyncIterator[Patient]:
    world = World(tmp_path / "home", guest)
    yield Patient(world)
    world.box.health.stop()
    world.node.cache.close()
    if world.box.main is not None:
        world.box.main.cancel()


def check(command: str, **values: float) -> HealthCheck:
    found = {"interval_s": SOON_S, "timeout_s": DEADLINE_S, "retries": 2} | values
    return msgspec.convert({"test": ["CMD-SHELL", command], **found}, HealthCheck)


async def test_a_sandbox_is_healthy_then_not_then_again(patient: Patient, tmp_path: Path) -> None:
    ill = tmp_path / "ill"
    await patient.runs(check(f"echo looked; test ! -e {ill}"))
    health = await patient.becomes("healthy")
    assert (health.failing_streak, health.probes[-1].exit_status, health.probes[-1].output) == (0, 0, "looked\n")
    ill.touch()
    health = await patient.becomes("unhealthy")
    assert health.failing_streak >= 2 and health.probes[-1].exit_status == 1
    assert patient.box.state is SandboxState.RUNNING  # docker leaves it at that, too
    ill.unlink()
    await patient.becomes("healthy")
    assert len((await patient.looked_at(5)).probes) == 5  # of many


async def test_failures_do_not_count_while_it_starts(patient: Patient) -> None:
    await patient.runs(check("exit 3", start_period_s=600, start_interval_s=SOON_S, interval_s=600))
    health = await patient.looked_at(4)
    assert (health.status, health.failing_streak, health.probes[0].exit_status) == ("starting", 0, 3)


async def test_a_probe_that_hangs_is_killed(patient: Patient, tmp_path: Path) -> None:
    await patient.runs(check(f"echo $$ > {tmp_path}/pid; sleep 1000 & wait", timeout_s=0.3, retries=1))
    health = await patient.becomes("unhealthy")
    patient.box.health.stop()
    assert health.probes[0].exit_status == -1 and "exceeded timeout (0.3s)" in health.probes[0].output
    assert patient.box.session is not None
    session = patient.box.session
    await until(lambda: len(session.processes) == 1)  # nothing of it is left in the guest


async def test_a_program_that_is_not_there(patient: Patient) -> None:
    await patient.runs(HealthCheck(test=["CMD", "/no/such/program"], interval_s=SOON_S, retries=1))
    health = await patient.becomes("unhealthy")
    assert health.probes[0].exit_status == 127 and "/no/such/program" in health.probes[0].output


async def test_a_suspend_waits_for_no_probe_and_none_runs_meanwhile(patient: Patient, tmp_path: Path) -> None:
    """What was known is known after the resume."""
    probes = tmp_path / "probes"
    await patient.runs(check(f"echo >> {probes}; test ! -e {tmp_path}/hang || sleep 1000"))
    await patient.becomes("healthy")
    (tmp_path / "hang").touch()
    before = len(probes.read_text())
    await until(lambda: len(probes.read_text()) > before)
    box = patient.box
    box.move("suspend")
    assert box.info().health is None
    box.happened("suspended")
    count = len(probes.read_text())
    await asyncio.sleep(10 * SOON_S)  # nothing to wait for: that nothing happens is the point
    assert len(probes.read_text()) == count
    (tmp_path / "hang").unlink()
    box.move("resume")
    box.happened("resumed")
    health = box.info().health
    assert health is not None and health.status == "healthy"
    await until(lambda: len(probes.read_text()) > count)


def test_what_the_spec_leaves_open_is_the_images_and_then_dockers() -> None:
    image = ImageConfig(health=HealthCheck(test=["CMD", "/probe"], interval_s=7, retries=5))
    spec = SandboxSpec(image="i", health=HealthCheck(interval_s=2, start_period_s=9))
    assert workload.health_check(spec, image) == HealthCheck(
        test=["/probe"], interval_s=2, timeout_s=30, retries=5, start_period_s=9, start_interval_s=2
    )
    assert workload.health_check(SandboxSpec(image="i"), ImageConfig()) is None
    off = SandboxSpec(image="i", health=HealthCheck(test=["NONE"]))
    assert workload.health_check(off, image) is None
    for bad in (["RUN", "x"], ["CMD"]):
        with pytest.raises(InvalidValue, match="no known form"):
            workload.health_check(SandboxSpec(image="i", health=HealthCheck(test=bad)), image)
    with pytest.raises(InvalidValue, match="negative"):
        workload.health_check(SandboxSpec(image="i", health=HealthCheck(test=["CMD", "x"], timeout_s=-1)), image)
