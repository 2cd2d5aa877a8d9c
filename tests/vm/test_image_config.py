"""What a Dockerfile says of how its image is run, from ``fcrun build`` to the end of a microVM."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.client.node import NodeClient
from perdure.model import ExecSpec, SandboxInfo

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(shutil.which("buildah") is None or os.geteuid() != 0, reason="needs root and buildah"),
]
Fcrun = Callable[..., "subprocess.CompletedProcess[str]"]
DOCKERFILE = r"""
FROM perdure-test
RUN echo 'app:x:1234:1234::/home/app:/bin/sh' >> /etc/passwd && printf 'app:x:1234:\nextra:x:77:app\n' >> /etc/group
ENV GREETING=hello
USER app
STOPSIGNAL SIGUSR1
EXPOSE 80
HEALTHCHECK --interval=300ms --retries=1 CMD test ! -e /tmp/ill
ENTRYPOINT ["sh", "-c"]
CMD ["trap 'echo told; exit 9' USR1; echo $GREETING $(id -u):$(id -g) $(id -G) $PWD; sleep infinity & wait"]
"""


def test_a_dockerfile_is_honoured_to_the_end(fcrun: Fcrun, client: NodeClient, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    built = fcrun("build", "-q", "-t", "honoured", str(tmp_path))
    assert built.returncode == 0, built.stderr
    try:
        _lives(fcrun, client)
    finally:
        for info in client.list():
            client.remove(info.id, force=True)
        client.remove_image("honoured")


def _lives(fcrun: Fcrun, client: NodeClient) -> None:
    info = client.get(fcrun("run", "-d", "--name", "box", "-w", "/made/where/none/was", "honoured").stdout.strip())
    assert next(iter(client.logs(info.id, follow=True))).data == b"hello 1234:1234 1234 77 /made/where/none/was\n"
    becomes(client, info, "healthy")
    assert "(healthy)" in fcrun("ps", "--format", "{{.Status}}").stdout
    client.suspend("box")
    assert client.get("box").health is None
    health = client.resume("box").health
    assert health is not None and health.status == "healthy"  # it is known still
    client.run("box", ExecSpec(command=["touch", "/tmp/ill"]))
    becomes(client, info, "unhealthy")
    assert "(unhealthy)" in fcrun("ps", "--format", "{{.Status}}").stdout
    done = client.stop("box", timeout_s=-1)
    assert (done.cause, done.exit_status) == ("stopped", 9)
    assert fcrun("logs", "box").stdout.endswith("told\n")


def becomes(client: NodeClient, info: SandboxInfo, status: str) -> None:
    """Waits for the event; the test's own time limit ends a wait for nothing."""
    kind = f"sandbox.health_status: {status}"
    assert any(event.kind == kind and event.sandbox_id == info.id for event in client.events(since=0))
