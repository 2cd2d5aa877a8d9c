"""What an agent requires is chosen once, by pip from a real index, and its run goes on with exactly that."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure.client.server import ServerClient
from perdure.context.sqlite import open as open_in_file
from perdure.errors import AgentInvalid, AssetTampered, PerdureError, TooLarge, Unavailable
from perdure.formats.scriptblock import Needs
from perdure.host.paths import Home
from perdure.model import RunState
from perdure.runs import pack
from perdure.runs.pack import Python
from perdure.runs.packs import silent
from perdure.runs.record import StartRequest, from_head
from perdure.runs.schedules import Schedule
from perdure.server import packages
from perdure.testing.packageindex import Index, wheel
from perdure.testing.workers import WorkerHouse

DEBIAN = Python(version="3.12.3", machine="x86_64", libc="glibc", libc_version="2.28")
ALPINE = Python(version="3.12.3", machine="x86_64", libc="musl", libc_version="1.2")


def script(*dependencies: str, python: str = "") -> str:
    lines = [f"requires-python = {python!r}"] if python else []
    lines.append(f"dependencies = {list(dependencies)!r}")
    return "# /// script\n" + "".join(f"# {line}\n" for line in lines) + "# ///\n"


def asking(*dependencies: str, body: str, head: str = "") -> str:
    return f"{script(*dependencies)}{head}\ndef f(ctx: Context):\n{body}"


def left(road: WorkerHouse) -> list[str]:
    """What lies in the folder of packs that is not whole."""
    return [path.name for path in (road.home.root / "packs").glob("new-*")]


async def test_a_run_goes_on_with_exactly_what_it_began_with(road: WorkerHouse, index: Index) -> None:
    index.add("owls", "1.0", requires=["feathers>=2", "fur; python_version < '3'"])
    files = {"feathers/__init__.py": "from feathers.down import SOFT", "feathers/down.py": "SOFT = 7"}
    index.add("feathers", "2.1", files)
    index.add("msgspec", "99.0", {"msgspec/__init__.py": "VERSION = 'its own'"})  # which the worker's parent has, too
    body = "    ctx.wait_for('go')\n    return [owls.VERSION, feathers.SOFT, msgspec.VERSION, version('owls')]\n"
    head = "import owls, feathers, msgspec\nfrom importlib.metadata import version\n"
    source = asking("perdure", "owls>=1", "msgspec", body=body, head=head)
    run_id = await road.start(source)
    await road.until(run_id, "run.suspended")
    index.add("owls", "2.0", requires=["feathers"])
    newer = await road.start(source)
    await road.until(newer, "run.suspended")
    index.files.clear()
    index.silent = True
    await road.down()
    for name in ("packs", "workers"):
        shutil.rmtree(road.home.root / name)  # as on another server
    await road.up()
    for one in (run_id, newer):
        await road.engine.signal(one, "go", None)
    assert await road.result(run_id) == ["1.0", 7, "its own", "1.0"]
    assert (await road.result(newer))[0] == "2.0"
    [fork] = await road.engine.fork(run_id, at=1)
    await road.until(fork.id, "run.suspended")
    await road.engine.signal(fork.id, "go", None)
    assert (await road.result(fork.id))[0] == "1.0"
    found = await pack.read(road.log, from_head(await road.log.head(run_id)).pack)
    names = ["feathers-2.1-py3-none-any.whl", "msgspec-99.0-py3-none-any.whl", "owls-1.0-py3-none-any.whl"]
    assert [part.path for part in found.wheels] == names and found.python == packages.own()
    assert left(road) == []


async def test_the_same_wheels_are_unpacked_once_and_have_one_digest(road: WorkerHouse, index: Index) -> None:
    index.add("owls", "1.0", {"owls-1.0.data/purelib/owls.py": "X = 1", "owls-1.0.data/scripts/hoot": "#!python\n"})
    source = asking("owls", body="    return __import__('owls').X\n")
    runs = [await road.start(source) for _ in range(2)]
    assert [await road.result(one) for one in runs] == [1, 1]
    assert len({from_head(await road.log.head(one)).pack for one in runs}) == 1
    [folder] = (road.home.root / "packs").iterdir()
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {"owls-1.0.dist-info", "owls.py"}


async def test_a_schedule_pins_them_when_it_is_made(road: WorkerHouse, index: Index) -> None:
    index.add("owls", "1.0")
    source = "from perdure import agent, Context\n" + asking("owls", body="    return __import__('owls').VERSION\n")
    request = StartRequest(source=source, file="x.py", function="f", durability="replay")
    await road.engine.schedules.create(Schedule(name="s", request=request, every_s=3600.0))
    index.add("owls", "2.0")
    assert await road.result(await road.engine.schedules.run("s")) == "1.0"


async def refused(road: WorkerHouse, source: str) -> PerdureError:
    with pytest.raises(PerdureError) as caught:
        await road.start(source)
    assert await road.engine.runs() == [] and left(road) == []
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("wanted", "kind", "message"),
    [
        ("nobody", AgentInvalid, "there is no package nobody"),
        ("owls==7", AgentInvalid, "there is no owls==7"),
        ("old", AgentInvalid, "old has no wheel for the server's Python"),
        ("later", AgentInvalid, "later has no wheel for the server's Python"),
        ("source", AgentInvalid, "source has no wheel, only its source"),
        ("changed", AssetTampered, "other bytes than its index says: Expected sha256"),
        ("owls==1.0, wings", AgentInvalid, "what it requires does not go together"),
        ("broken", AgentInvalid, "pip does not bring what it requires|broken-1.0-py3-none-any.whl is no wheel"),
        ("outside", AgentInvalid, "a file that leads elsewhere: '../x.py'"),
    ],
)
async def test_what_is_not_to_be_had_is_said_before_there_is_a_run(
    road: WorkerHouse, index: Index, wanted: str, kind: type[PerdureError], message: str
) -> None:
    index.add("owls", "1.0")
    index.add("owls", "2.0")
    index.add("wings", "1.0", requires=["owls>=2"])
    index.add("old", "1.0", tag="cp27-cp27m-win32")
    index.add("later", "1.0", python=">=9")
    index.add_source("source", "1.0")
    index.put("changed", "changed-1.0-py3-none-any.whl", wheel("changed", "1.0", {}), digest="0" * 64)
    index.put("broken", "broken-1.0-py3-none-any.whl", b"PK nothing")
    index.add("outside", "1.0", {"../x.py": ""})
    error = await refused(road, asking(*wanted.split(", "), body="    pass\n"))
    assert type(error) is kind, error
    assert re.search(message, error.message), error.message


async def test_an_index_that_is_away_is_said(road: WorkerHouse, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    error = await refused(road, asking("owls", body="    pass\n"))
    assert type(error) is Unavailable and "the package index does not answer" in error.message


async def test_the_run_of_a_key_is_given_although_the_index_is_away(
    road: WorkerHouse, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("owls", "1.0", {"owls.py": "X = 1"})
    source = asking("owls", body="    return __import__('owls').X\n")
    run_id = await road.start(source, key="once", key_ttl_s=3600.0)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    assert await road.start(source, key="once") == run_id
    assert await road.result(run_id) == 1
    with pytest.raises(Unavailable, match="the package index does not answer"):
        await road.start(source, key="another")


async def test_packages_that_are_too_large_are_said(
    road: WorkerHouse, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("large", "1.0", {"large.bin": os.urandom(3 << 20)})
    for name in ("PACKED_MAX_BYTES", "UNPACKED_MAX_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(packages, name, 2 << 20)
            error = await refused(road, asking("large", body="    pass\n"))
            assert type(error) is TooLarge and "more than 2 MiB" in error.message


async def test_another_python_is_required(road: WorkerHouse, index: Index) -> None:
    index.add("owls", "1.0")
    error = await refused(road, script("owls", python=">=4") + "def f(ctx): ...\n")
    assert "it requires Python >=4" in error.message


async def test_nothing_of_an_agent_runs_while_its_packages_are_brought(
    road: WorkerHouse, index: Index, tmp_path: Path
) -> None:
    """Also where a wheel requires a source distribution by its URL."""
    built = tmp_path / "built"
    file = index.add_source("evil", "1.0", f"open({str(built)!r}, 'w').close()")
    index.add("owls", "1.0", requires=[f"evil @ {index.url}/files/evil/{file}"])
    error = await refused(road, asking("owls", body="    pass\n"))
    assert "evil" in error.message and f"/files/evil/{file}" in index.asked and not built.exists()


async def test_wheels_and_markers_are_those_of_the_python_of_an_image(road: WorkerHouse, index: Index) -> None:
    markers = ["near; python_version == '3.12'", "far; python_version < '3.12'"]
    index.add("near", "1.0", requires=["more; platform_machine == 'x86_64' and python_full_version >= '3.12.3'"])
    index.add("more", "1.0")
    for tag in ("cp311-cp311-manylinux_2_17_x86_64", "cp312-cp312-manylinux_2_29_x86_64", "cp312-cp312-win32"):
        index.add("native", "2.0", tag=tag)
    for tag in ("cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64", "cp312-cp312-musllinux_1_2_x86_64"):
        index.add("native", "1.0", tag=tag, requires=markers)
    needs = Needs(("native",))
    road.python_of = {"debian": DEBIAN, "alpine": ALPINE}.__getitem__
    await road.down()
    await road.up()
    for image, tag in (("debian", "manylinux_2_17_x86_64.manylinux2014_x86_64"), ("alpine", "musllinux_1_2_x86_64")):
        python, parts = await road.packages.resolve(needs, image, silent)
        names = ["more-1.0-py3-none-any.whl", f"native-1.0-cp312-cp312-{tag}.whl", "near-1.0-py3-none-any.whl"]
        assert [part.path for part in parts] == names and python == {"debian": DEBIAN, "alpine": ALPINE}[image]
    road.python_of = lambda image: DEBIAN


def test_wheels_go_along_to_a_python_that_takes_them() -> None:
    assert DEBIAN.takes(DEBIAN) and not DEBIAN.takes(ALPINE)
    newer = Python(version="3.12.9", machine="x86_64", libc="glibc", libc_version="2.36")
    assert newer.takes(DEBIAN) and not DEBIAN.takes(newer)
    assert not Python(version="3.13.0", machine="x86_64", libc="glibc", libc_version="2.36").takes(DEBIAN)


async def test_who_starts_a_run_is_told_how_its_packages_are_brought(road: WorkerHouse, index: Index) -> None:
    index.add("owls", "1.0")
    told: list[str] = []
    source = "from perdure import agent, Context\n" + asking("owls", body="    return __import__('owls').VERSION\n")
    client = ServerClient(road.home)
    wish: dict[str, Any] = {"source": source, "file": "x.py", "function": "f", "durability": "replay"}
    info = await asyncio.to_thread(lambda: client.start(**wish, progress=lambda what, done, total: told.append(what)))
    assert await road.result(info.id) == "1.0"
    shown = list(dict.fromkeys(re.sub(r" \(.*", "", what) for what in told))
    assert shown == ["looking for owls", "fetching owls-1.0-py3-none-any.whl", "keeping the packages"]
    with pytest.raises(AgentInvalid, match="there is no package nobody"):
        await asyncio.to_thread(lambda: client.start(**{**wish, "source": source.replace("'owls'", "'nobody'", 1)}))
    assert len(await road.engine.runs()) == 1
    assert (await road.engine.info(info.id)).state is RunState.COMPLETED


async def test_whoever_gives_up_ends_pip(road: WorkerHouse, index: Index) -> None:
    index.silent = True
    starting = asyncio.create_task(road.start(asking("owls", body="    pass\n")))
    assert await asyncio.to_thread(index.reached.wait, 30)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await asyncio.to_thread(index.left.wait, 30)
    assert left(road) == [] and await road.engine.runs() == []


RESOLVES = """
import asyncio, sys
from pathlib import Path
from perdure.context.sqlite import open as open_in_file
from perdure.formats.scriptblock import Needs
from perdure.host.paths import Home
from perdure.server.packages import Packages

async def main():
    home = Home(Path(sys.argv[1]), Path(sys.argv[1])).make()
    log = await open_in_file(home.database)
    await Packages(home, log, None).resolve(Needs(("owls",)), "", lambda *step: None)

asyncio.run(main())
"""


async def test_a_server_that_is_killed_leaves_neither_pip_nor_files(index: Index, tmp_path: Path) -> None:
    index.silent = True
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", RESOLVES, str(tmp_path))
    try:
        assert await asyncio.to_thread(index.reached.wait, 30)
        assert list((tmp_path / "packs").iterdir())
    finally:
        server.kill()
        await server.wait()
    assert await asyncio.to_thread(index.left.wait, 30)  # pip, too, has ended
    packages.Packages(Home(tmp_path, tmp_path), None, None)  # type: ignore[arg-type]  # it only begins: asks neither
    assert not (tmp_path / "packs").exists()


async def test_a_server_on_another_python_says_so(
    road: WorkerHouse, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("owls", "1.0")
    run_id = await road.start(asking("owls", body="    ctx.wait_for('go')\n"))
    await road.until(run_id, "run.suspended")
    monkeypatch.setattr(packages, "own", lambda: ALPINE)
    await road.engine.signal(run_id, "go", None)
    info = await road.ends(run_id)
    assert info.error is not None and info.error["code"] == "version-mismatch"
    assert "this server has Python 3.12 on x86_64 (musl 1.2)" in info.error["message"]


async def test_an_exported_log_has_its_wheels(road: WorkerHouse, index: Index, tmp_path: Path) -> None:
    index.add("owls", "1.0")
    run_id = await road.start(asking("owls", body="    return __import__('owls').VERSION\n"), modules={"near.py": b"Y"})
    await road.result(run_id)
    lines = [line async for line in road.log.export(run_id)]
    other = await open_in_file(tmp_path / "other.db")
    try:

        async def fed() -> AsyncIterator[bytes]:
            for line in lines:
                yield line

        head = await other.take_up(fed())
        found = await pack.read(other, from_head(head).pack)
        assert set(await pack.contents(other, [*found.modules, *found.wheels])) == {
            "near.py",
            "owls-1.0-py3-none-any.whl",
        }
    finally:
        await other.close()


async def test_what_is_unpacked_and_needed_by_nobody_goes_and_comes_back(
    road: WorkerHouse, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "IDLE_MAX", 0)
    index.add("owls", "1.0")
    source = asking("owls", body="    ctx.wait_for('go')\n    import owls\n    return owls.VERSION\n")
    run_id = await road.start(source)
    await road.until(run_id, "run.suspended")
    folder = road.home.root / "packs"
    async with asyncio.timeout(20):
        while list(folder.iterdir()):
            await asyncio.wait({asyncio.create_task(asyncio.sleep(0.01))})
    await road.engine.signal(run_id, "go", None)
    assert await road.result(run_id) == "1.0"
