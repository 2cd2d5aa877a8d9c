"""Sandboxes that are started again when they end, on the real Firecracker."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.host.paths import Home
from perdure.model import SandboxInfo, SandboxState

pytestmark = pytest.mark.vm
Fcrun = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., SandboxInfo]
Eventually = Callable[[Callable[[], object]], None]


def test_a_sandbox_is_started_again_as_its_policy_says(
    home: Home,
    client: NodeClient,
    fcrun: Fcrun,
    start: Start,
    eventually: Eventually,
    kill_below: Callable[[int], None],
) -> None:
    ref = start("sh", "-c", "echo started; exit 3", restart="on-failure:2").id
    # it counts the last start before it is under way: what that wrote says that it is over
    eventually(lambda: b"".join(record.data for record in client.logs(ref)) == b"started\n" * 3)
    eventually(lambda: client.get(ref).state is SandboxState.EXITED)
    assert client.get(ref).restarts == 2 and fcrun("logs", ref).stdout == "started\n" * 3
    assert (
        fcrun("inspect", "-f", "{{.RestartCount}} {{.HostConfig.RestartPolicy.Name}}", ref).stdout == "2 on-failure\n"
    )

    ref = start("sleep", "infinity", restart="unless-stopped").id
    first = client.get(ref).machine["firecracker_pid"]
    kill_below(first)  # its machine dies
    eventually(lambda: client.get(ref).machine.get("firecracker_pid") not in (first, None))
    assert client.get(ref).restarts == 1
    assert client.stop(ref, timeout_s=1.0).state is SandboxState.EXITED
    client.shutdown()
    ensure_running(home)
    assert client.get(ref).state is SandboxState.EXITED
    assert client.start(ref).restarts == 0
