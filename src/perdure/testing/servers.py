"""Real servers that hold snapshots, on loopback ports that the system chooses: an S3 server and an OCI registry."""

from __future__ import annotations

import queue
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_DEADLINE_S = 60.0
END_DEADLINE_S = 10.0
BUCKET = "snapshots"
S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of an S3 server (moto) with an empty BUCKET; ``S3_ENVIRONMENT`` has keys that it takes."""
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with _started(argv, re.compile(r"Running on (http://127\.0\.0\.1:\d+)")) as url:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=30):
            pass
        yield url


@contextmanager
def registry_server(folder: Path, auth: str = "") -> Iterator[str]:
    """HOST:PORT of a registry (Debian's docker-registry) that keeps its blobs in ``folder``, without TLS.

    ``auth``: the ``auth`` section of its configuration, YAML in one line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: info, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}, delete: {{enabled: true}}}}\n"
        "http: {addr: '127.0.0.1:0', secret: test}\n" + (f"auth: {auth}\n" if auth else "")
    )
    argv = ["docker-registry", "serve", str(config)]
    with _started(argv, re.compile(r"listening on (127\.0\.0\.1:\d+)")) as host:
        yield host


@contextmanager
def _started(argv: Sequence[str], said: re.Pattern[str]) -> Iterator[str]:
    """What the program's output says matches; the program is ended afterwards."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        found: queue.Queue[str] = queue.Queue()
        output: list[str] = []

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                output.append(line)
                if match := said.search(line):
                    found.put(match[1])
            found.put("")

        reader = threading.Thread(target=read)
        reader.start()
        try:
            place = found.get(timeout=START_DEADLINE_S)
            assert place, f"{argv[0]} ended: {''.join(output)[-2000:]}"
            yield place
        finally:
            process.terminate()
            try:
                process.wait(END_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            reader.join()
