"""What an agent brings along is packed by digest, and its run, and all that come from it, keep that."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from perdure.context.log import ContextLog
from perdure.errors import InvalidValue, NotFound, ProtocolError, TooLarge
from perdure.formats.chain import link_references
from perdure.runs import pack, retention
from perdure.runs.pack import Pack, Part
from perdure.runs.record import from_head
from perdure.runs.schedules import Schedule
from perdure.testing.house import AGENT
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps

FILES = {"b.py": b"B = 1", "a/__init__.py": b"", "a/data": bytes(range(256)) * 9}


def quick() -> Steps:
    yield Ask("complete", {"result": 1})


def parent() -> Steps:
    begun = yield Ask("begin", {})
    if begun.value["agent"] == "agent.py:main":
        yield Ask("wait", {"kind": "child", "function": "other", "input": None})
    yield Ask("complete", {"result": 1})


async def packed(log: ContextLog, run_id: str) -> str | None:
    return from_head(await log.head(run_id)).pack


def test_the_same_parts_have_the_same_bytes_and_name_what_they_are_made_of() -> None:
    parts = [Part(path=path, digest=f"sha256:{number:064x}") for number, path in enumerate(sorted(FILES))]
    made = Pack(modules=parts)
    assert pack.decoded(made.encoded()) == made
    assert made.encoded() == Pack(modules=list(parts)).encoded()
    assert link_references(made.encoded()) == [part.digest for part in parts]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"item":{"modules":[{"path":"x"}]}}', b'{"item":{"modules":3}}']
)
def test_what_is_no_pack_is_said(content: bytes) -> None:
    with pytest.raises(ProtocolError, match="no pack"):
        pack.decoded(content)


@pytest.mark.parametrize(
    "path", ["/x.py", "../x.py", "a//x.py", "a/./x.py", "", "agent.py", "a\\x.py", "a\0.py", "x" * 300]
)
async def test_a_path_that_leads_elsewhere_is_refused(house: Any, path: str) -> None:
    with pytest.raises(InvalidValue, match="not the path of a file beside agent"):
        await house.engine.start(msgspec.structs.replace(AGENT, modules={path: b""}))
    assert await house.engine.runs() == []


async def test_modules_that_are_too_large_or_of_no_agent_are_refused(house: Any) -> None:
    for modules in ({"x.py": bytes(pack.MODULES_MAX_BYTES + 1)}, {f"{n}.py": b"" for n in range(2001)}):
        with pytest.raises(TooLarge, match="imports from beside it"):
            await house.engine.start(msgspec.structs.replace(AGENT, modules=modules))
    command = {"source": "", "file": "", "function": "", "command": ["x"]}
    with pytest.raises(InvalidValue, match="this is a command"):
        await house.engine.start(msgspec.structs.replace(AGENT, **command, modules=FILES))
    with pytest.raises(NotFound):
        await house.engine.start(msgspec.structs.replace(AGENT, pack=f"sha256:{0:064}"))
    assert await house.engine.runs() == []


async def test_a_run_its_children_and_its_forks_keep_the_pack(house: Any) -> None:
    run_id = await house.start(parent, modules=FILES)
    digest = await packed(house.log, run_id)
    found = await pack.read(house.log, digest)
    assert await pack.contents(house.log, found.modules) == FILES
    [entry] = await house.log.read(run_id, kind="run.queued")
    assert entry.payload["pack"] == digest and "modules" not in entry.payload["request"]
    info = await house.ends(run_id)
    [fork] = await house.engine.fork(run_id, at=1)
    assert len(info.children) == 1
    for other in (*info.children, fork.id):
        assert await packed(house.log, other) == digest
    again = await house.start(quick, modules=dict(reversed(FILES.items())))
    assert await packed(house.log, again) == digest
    assert await packed(house.log, await house.start(quick)) is None


async def test_a_schedule_keeps_what_it_was_made_with_through_sweeps(house: Any) -> None:
    request = msgspec.structs.replace(AGENT, modules=FILES)
    await house.engine.schedules.create(Schedule(name="s", request=request, every_s=3600.0))
    for _ in range(3):
        await house.log.sweep()
    house.machines.program = quick
    run_id = await house.engine.schedules.run("s")
    found = await pack.read(house.log, await packed(house.log, run_id))
    assert await pack.contents(house.log, found.modules) == FILES


async def test_parts_go_when_no_run_needs_them(house: Any) -> None:
    run_id = await house.start(quick, modules=FILES)
    await house.ends(run_id)
    digest = await packed(house.log, run_id)
    parts = (await pack.read(house.log, digest)).modules
    for _ in range(3):
        await house.log.sweep()
    assert await pack.contents(house.log, parts) == FILES
    await house.released(run_id)
    await retention.prune(house.context, run_id)
    for _ in range(3):
        await house.log.sweep()
    for name in (digest, *(part.digest for part in parts)):
        with pytest.raises(NotFound):
            await house.log.get_blob(name)
    assert (await house.engine.info(run_id)).result == 1
