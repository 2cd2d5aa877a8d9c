"""fcrun bench"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from perdure.cli.fcrun import _format

NAME = "bench"
HELP = "Measure this machine: how long runs, execs, suspends, resumes and forks take"
GROUP = "Host"
DESCRIPTION = (
    f"{HELP}. It runs an image's shell in a sandbox of its own, which is removed again. The first round makes the "
    "template of that image and is not counted. Times are those that a user of the command waits for, less its start."
)
COLUMNS = {"What": "WHAT", "Median": "MEDIAN", "Least": "LEAST", "Most": "MOST"}

if TYPE_CHECKING:
    from perdure.client.node import NodeClient
    from perdure.model import ExecSpec, SandboxSpec

Times = dict[str, list[float]]
Result = TypeVar("Result")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", default="", metavar="IMAGE", help="one with a shell (default: the newest one here)")
    parser.add_argument("-n", "--rounds", type=int, default=5, metavar="N", help="how often each is done (5)")
    parser.add_argument("--format", default="table", metavar="FORMAT", help="'table', 'json', or a template")


def run(options: argparse.Namespace) -> int:
    import statistics

    from perdure.cli.fcrun._node import node
    from perdure.errors import InvalidValue

    if options.rounds < 1:
        raise InvalidValue("--rounds: at least 1")
    times: Times = {}
    with node() as client:
        stored = _measure(client, options.image or _newest(client), options.rounds, times)
    rows = [
        {
            "What": what,
            "Median": f"{statistics.median(taken):.3f} s",
            "Least": f"{min(taken):.3f} s",
            "Most": f"{max(taken):.3f} s",
        }
        for what, taken in times.items()
    ]
    size = {"What": "stored by the first suspend", "Median": _format.size(stored), "Least": "", "Most": ""}
    values = [{"what": what, "seconds": taken} for what, taken in times.items()]
    _format.show([*rows, size], [*values, {"what": size["What"], "bytes": stored}], COLUMNS, options.format)
    return 0


def _newest(client: NodeClient) -> str:
    from perdure.errors import NotFound

    images = sorted(client.images(), key=lambda image: image.created)
    if not images:
        raise NotFound("there is no image to measure with", hint="Name one: fcrun bench --image debian")
    return images[-1].name


def _measure(client: NodeClient, image: str, rounds: int, times: Times) -> int:
    """Fill in the times; the bytes that the first suspend stored."""
    from perdure.model import ExecSpec, Fork, SandboxSpec

    waits = SandboxSpec(image=image, entrypoint=["/bin/sh"], command=["-c", "while :; do sleep 3600; done"])
    ends = SandboxSpec(image=image, entrypoint=["/bin/sh"], command=["-c", ":"])
    client.remove(_ran(client, ends), force=True)  # makes the template
    box = client.start(client.create(waits).id).id
    try:
        stored = client.suspend(box).stored_bytes
        client.resume(box)
        for _ in range(rounds):
            client.remove(_timed(times, "run, to its exit", lambda: _ran(client, ends)), force=True)
            _timed(times, "exec, to its exit", lambda: _executed(client, box, ExecSpec(command=["/bin/sh", "-c", ":"])))
            _timed(times, "checkpoint, to durable", lambda: client.checkpoint(box))
            _timed(times, "suspend, to durable", lambda: client.suspend(box))
            _timed(times, "resume, to running", lambda: client.resume(box))
            (fork,) = _timed(times, "fork, to running", lambda: client.fork(box, [Fork()]))
            client.remove(fork.id, force=True)
        return stored
    finally:
        client.remove(box, force=True)


def _timed(times: Times, what: str, work: Callable[[], Result]) -> Result:
    import time

    began = time.monotonic()
    result = work()
    times.setdefault(what, []).append(time.monotonic() - began)
    return result


def _ran(client: NodeClient, spec: SandboxSpec) -> str:
    made = client.create(spec).id
    try:
        client.start(made)
        client.wait(made)
    except BaseException:
        client.remove(made, force=True)
        raise
    return made


def _executed(client: NodeClient, box: str, spec: ExecSpec) -> None:
    with client.exec(box, spec) as session:
        for _ in session.outputs():
            pass
