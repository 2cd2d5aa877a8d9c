"""LiteLLM's proxy as a process of ``bench_gateway``, with a Python of its own (``make build/litellm.done``).

Set up as its guide for production says (docs.litellm.ai, "Production Best Practices"): uvicorn, mode PRODUCTION,
nothing but errors logged; one worker, or as many as are asked for. It has one key, which it checks (ours checks a
token), no database and no callbacks: the least that it does for a call. Its Rust core is a beta that is off unless it
is asked for, and is left so. It fetches nothing: prices are those that came with it, and its telemetry is off.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "build" / "litellm" / "bin" / "litellm"
START_S = 180.0
END_S = 10.0
LOOK_S = 0.2
ENVIRONMENT = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "DISABLE_ADMIN_UI": "True",
}


def is_there() -> bool:
    return PROGRAM.exists()


@contextmanager
def serving(provider: str, model: str, workers: int = 1) -> Iterator[tuple[int, str]]:
    """The loopback port, and the key, of a proxy that asks ``provider`` (its base URL) for ``model``."""
    with tempfile.TemporaryDirectory() as name:
        config, output = Path(name) / "config.yaml", Path(name) / "output"
        port, key = _free_port(), f"sk-{secrets.token_hex(32)}"
        parameters = {"model": f"openai/{model}", "api_base": provider, "api_key": "none"}
        settings = {  # JSON is YAML
            "model_list": [{"model_name": model, "litellm_params": parameters}],
            "litellm_settings": {"telemetry": False, "set_verbose": False},
            "general_settings": {"master_key": key},
        }
        config.write_text(json.dumps(settings))
        words = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", str(workers), "--telemetry", "False"]
        if (
            workers > 1
        ):  # on a busy machine their imports take longer than the few seconds after which they are replaced
            words += ["--timeout_worker_healthcheck", str(int(START_S))]
        with (
            output.open("wb") as told,
            subprocess.Popen(
                [PROGRAM, "--config", config, *words],
                cwd=name,
                env={**_kept(), **ENVIRONMENT, "HOME": name},
                stdout=told,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                _up(port, process, output)
                yield port, key
            finally:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """With its workers."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)


def _kept() -> dict[str, str]:
    """Nothing that it would take for settings of its own."""
    return {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _up(port: int, process: subprocess.Popen[bytes], output: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", "/health/liveliness")
                if connection.getresponse().status == 200:
                    return
        except (OSError, HTTPException):
            pass  # it is still importing
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"LiteLLM does not answer: {output.read_text()[-2000:]}")
        time.sleep(LOOK_S)
