"""Many sandboxes on one node at once, and nothing of them left.

Fifty where there is KVM; twelve in the emulated host, whose processors need minutes for fifty: `make many` does that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from perdure.client.node import NodeClient
from perdure.host.paths import Home
from perdure.model import ExecSpec, SandboxSpec, SandboxState

from .conftest import IMAGE

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]
EMULATED, NATIVE = 12, 50
Eventually = Callable[[Callable[[], object]], None]


def test_many_at_once(
    home: Home, client: NodeClient, below: Callable[[list[str]], str], eventually: Eventually, capsys: Any
) -> None:
    spec = SandboxSpec(image=IMAGE, command=["sleep", "infinity"], memory_mib=128, disk_mib=512)

    def at_once(what: str, work: Callable[[Any], Any], values: Any) -> list[Any]:
        began = time.monotonic()
        with ThreadPoolExecutor(many) as pool:
            done = list(pool.map(work, values))
        with capsys.disabled():
            print(f"\n  {what}: {time.monotonic() - began:.1f} s", end="", flush=True)
        return done

    client.remove(client.start(client.create(spec).id).id, force=True)  # its template is made once
    many = int(os.environ.get("PERDURE_TEST_MANY") or (EMULATED if client.system()["emulated"] else NATIVE))
    descriptors, free_kib = descriptors_of(client), available_kib(below)
    refs = [info.id for info in at_once("create", client.create, [spec] * many)]
    assert len({info.name for info in client.list()}) == many
    at_once("start", client.start, refs)
    listed = at_once("list", lambda _: client.list(everything=False), range(many))
    assert {len(found) for found in listed} == {many}
    hosts = at_once("exec", lambda ref: client.run(ref, ExecSpec(command=["cat", "/etc/hostname"])), refs)
    assert [out.decode().strip() for _, out, _ in hosts] == refs
    assert len(below(["/bin/ls", str(home.below_line_folder / "m")]).split()) >= many
    with capsys.disabled():
        print(f"\n  memory of each: {(free_kib - available_kib(below)) / many / 1024:.0f} MiB", end="")
    at_once("suspend", client.suspend, refs)
    assert {info.state for info in client.list()} == {SandboxState.SUSPENDED}
    woken = at_once("wake", lambda ref: client.run(ref, ExecSpec(command=["cat", "/etc/hostname"])), refs)
    assert woken == hosts
    at_once("remove", lambda ref: client.remove(ref, force=True), refs)
    assert client.list() == []
    eventually(lambda: descriptors_of(client) <= descriptors)


def descriptors_of(client: NodeClient) -> int:
    """How many the node's daemon has open."""
    return len(list(Path(f"/proc/{client.system()['pid']}/fd").iterdir()))


def available_kib(below: Callable[[list[str]], str]) -> int:
    """Of the host's memory, where the machines run."""
    line = next(line for line in below(["/bin/cat", "/proc/meminfo"]).splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1])
