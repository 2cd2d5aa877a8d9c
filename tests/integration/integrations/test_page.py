"""docs/integrations.md: what it shows is run as it stands, against a real server, and prints what it says."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.testing.house import Provider
from perdure.testing.logservers import LogServer, running

PAGE = (Path(__file__).parents[3] / "docs" / "integrations.md").read_text()
SHOWN = re.findall(r"^## ([^\n]*)\n.*?^```python\n(.*?)^```\n((?:\n(?:    [^\n]*\n)+)?)", PAGE, flags=re.M | re.S)
NEEDED = {
    "LangGraph": "langgraph.graph",
    "Claude Agent SDK": "claude_agent_sdk",
    "OpenAI Agents SDK": "agents",
    "OpenAI Agents SDK: sandboxes": "agents.sandbox",
    "Pydantic AI": "pydantic_ai",
    "MCP": "mcp",
    "Google ADK": "google.adk",
}
IN_A_MICROVM = ("OpenAI Agents SDK: sandboxes",)  # tests/vm/test_openai_sandbox.py
# The model of the examples is one that runs here, as it would be behind the gateway.
MODEL = "import agents; agents.set_default_openai_api('chat_completions'); agents.set_tracing_disabled(True)\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LogServer]:
    with running(tmp_path_factory.mktemp("page")) as server:
        yield server


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize(
    ("title", "code", "output"),
    [shown for shown in SHOWN if shown[0] not in IN_A_MICROVM],
    ids=[title for title, _, _ in SHOWN if title not in IN_A_MICROVM],
)
async def test_an_example_prints_what_it_says(
    server: LogServer, tmp_path: Path, title: str, code: str, output: str
) -> None:
    if not _is_there(NEEDED.get(title, "perdure")):
        pytest.skip(f"{title} is not installed")
    provider = Provider()
    await provider.open()
    program = tmp_path / "example.py"
    program.write_text((MODEL if title == "OpenAI Agents SDK" else "") + code)
    keys = {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": provider.url, "PERDURE_HOME": str(server.home.root)}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environ = {**os.environ, **keys, "PERDURE_CACHE": str(server.home.cache), "PATH": path}
    process = await asyncio.create_subprocess_exec(
        sys.executable, program, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    printed, complained = await asyncio.wait_for(process.communicate(), 60)
    await provider.close()
    assert process.returncode == 0, complained.decode()
    assert printed.decode() == re.sub(r"^    ", "", output.lstrip("\n"), flags=re.M)


def test_each_example_is_tested() -> None:
    assert len(SHOWN) == PAGE.count("```python")
