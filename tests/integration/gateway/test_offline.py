"""The offline provider, for real: SmolLM2 in a process of its own, asked through the gateway."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.server import ServerClient
from perdure.context import sqlite
from perdure.errors import Unsupported
from perdure.gateway import offline_process
from perdure.gateway.gateway import Gateway
from perdure.gateway.offline_process import OfflineProcess
from perdure.gateway.providers import load
from perdure.host.paths import Home
from perdure.model import Call

pytestmark = pytest.mark.timeout(120)
RUN = "0123456789ab"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home", tmp_path / "cache").make()
    yield made
    OfflineProcess(made).stop()


def chat(ordinal: int, *, stream: bool) -> Call:
    body = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 20,
        "stream": stream,
        "stream_options": {"include_usage": True},
    }
    return Call(
        run_id=RUN, epoch=1, lane="main", ordinal=ordinal, method="POST", path="/v1/chat/completions", headers={},
        body=json.dumps(body).encode(),
    )  # fmt: skip


async def test_a_real_model_answers_and_counts_what_it_was_asked(home: Home) -> None:
    log = await sqlite.open(home.database)
    await log.create(RUN, {})
    server = ServerClient(home)
    assert server.provider_requests() == []
    async with Gateway(log, load(home, {})) as gateway:
        whole = await gateway.answer(chat(1, stream=False), 1)
        body = json.loads(b"".join([piece async for piece in whole.body]))
        assert "Paris" in body["choices"][0]["message"]["content"]
        for _ in range(2):  # the second time from the log
            streamed = await gateway.answer(chat(2, stream=True), 1)
            pieces = [piece async for piece in streamed.body]
            assert pieces[-1].endswith(b"data: [DONE]\n\n")
    committed = (await log.read(RUN))[-1]
    assert "Paris" in committed.payload["text"] and committed.payload["usage"]["output_tokens"] > 3
    await log.close()
    asked = await asyncio.to_thread(server.provider_requests)
    assert [request["id"] for request in asked] == [f"perdure-{RUN}-1-main/1", f"perdure-{RUN}-1-main/2"]
    assert [(request["stream"], request["status"]) for request in asked] == [(False, 200), (True, 200)]


ASKED = {
    "/v1/messages": {"max_tokens": 20, "messages": [{"role": "user", "content": "What is the capital of France?"}]},
    "/v1/responses": {"max_output_tokens": 20, "input": "What is the capital of France?"},
}


@pytest.mark.parametrize("path", ASKED)
async def test_it_speaks_the_other_dialects(home: Home, path: str) -> None:
    log = await sqlite.open(home.database)
    await log.create(RUN, {})
    async with Gateway(log, load(home, {})) as gateway:
        for ordinal, stream in enumerate((False, True)):
            body = json.dumps({**ASKED[path], "model": "small", "stream": stream}).encode()
            answer = await gateway.answer(Call(RUN, 1, "main", ordinal, "POST", path, {}, body), 1)
            said = b"".join([piece async for piece in answer.body])
            assert answer.status == 200, said
    for committed in await log.read(RUN, kind="model.committed"):
        told = committed.payload
        assert "Paris" in told["text"] and told["usage"]["output_tokens"] > 3 and told["usage"]["input_tokens"] > 10
        assert told["stop_reason"] and told["model"]
    assert len(await log.read(RUN, kind="model.committed")) == 2
    await log.close()


async def test_there_is_one_and_it_is_found_again(home: Home) -> None:
    process = OfflineProcess(home)
    one, two = await asyncio.gather(process.ensure(), process.ensure())
    assert one == two == await OfflineProcess(home).ensure()
    found = process.find()
    assert found is not None and f":{found[1]}/" in one
    os.kill(found[0], signal.SIGKILL)
    fresh = await _after_death(process, one)
    assert fresh != one
    assert process.stop() and process.find() is None and not process.stop()


async def _after_death(process: OfflineProcess, url: str) -> str:
    """Its lock is free when the kernel has ended it; ``ensure`` then starts another."""
    deadline = asyncio.get_running_loop().time() + 20
    while asyncio.get_running_loop().time() < deadline:
        if (fresh := await process.ensure()) != url:
            return fresh
        await asyncio.sleep(0)
    raise AssertionError("it is still found")


async def test_without_the_extra_the_error_says_what_to_install(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_process, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match="xllamacpp") as raised:
        await OfflineProcess(home).ensure()
    assert "perdure[offline]" in raised.value.hint and "OPENAI_API_KEY" in raised.value.hint


def test_it_ends_at_sigterm(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "perdure.gateway.offline", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None and process.stdout.readline().startswith(b"http://127.0.0.1:")
        process.terminate()
        assert process.wait(20) == 0
