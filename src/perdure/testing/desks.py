"""A person's place at the command line: the real ``perdure``, server API, engine and log; only no VM."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from perdure.host.paths import Home
from perdure.testing.house import House, Provider
from perdure.testing.served import Served

AGENT = "from perdure import Context, agent\n@agent(image='image')\ndef f(ctx: Context): return 1\n"


class Desk:
    """A house, and ``perdure`` at its side."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.served, self.house, self.folder = served, served.house, folder
        self.started: list[asyncio.subprocess.Process] = []
        (folder / "x.py").write_text(AGENT)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PERDURE_"))}
        self.environ = {**kept, "PERDURE_HOME": str(served.home.root), "PERDURE_CACHE": str(served.home.cache)}

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "perdure.cli.perdure", *words,
            cwd=self.folder, env=self.environ, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe,
        )  # fmt: skip
        self.started.append(process)
        return process

    async def leave(self) -> None:
        """End what a failed test left."""
        for process in self.started:
            if process.returncode is None:
                process.kill()
                said, told = await process.communicate()
                print(f"left running: {said!r} {told!r}")

    async def __call__(self, *words: str, status: int = 0) -> tuple[str, str]:
        """What it wrote, stdout and stderr; it must end with ``status``."""
        process = await self.start(*words)
        said, told = [text.decode() for text in await asyncio.wait_for(process.communicate(), 60)]
        assert process.returncode == status, (words, process.returncode, said, told)
        assert "Traceback" not in told
        return said, told


@asynccontextmanager
async def opened(folder: Path, provider: Provider) -> AsyncIterator[Desk]:
    """With a home of its own in ``folder``."""
    house = House(folder, provider.url)
    await house.up()
    served = Served(house, Home(folder / "home", folder / "cache").make())
    await served.up()
    made = Desk(served, folder)
    yield made
    await made.leave()
    await served.runner.cleanup()
    await house.machines.close()
    await house.down()


@pytest.fixture
async def desk(tmp_path: Path, provider: Provider) -> AsyncIterator[Desk]:
    async with opened(tmp_path, provider) as made:
        yield made
