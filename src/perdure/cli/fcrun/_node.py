"""The way from a command to the node: started when it does not run, its progress on the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from perdure.client.node import NodeClient
from perdure.errors import PerdureError
from perdure.host.paths import Home

if TYPE_CHECKING:
    from perdure.model import SandboxInfo

FAILED = 125


@contextmanager
def node(*, quiet: bool = False) -> Iterator[NodeClient]:
    """A client of this user's node, or of the one that FCRUN_HOST names. What takes long is shown on a terminal."""
    home = Home.find()
    client = NodeClient.named(os.environ, home)
    if not client.is_elsewhere:  # that one is never started from here
        client.ensure()
    if quiet or not sys.stderr.isatty():
        yield client
        return
    from perdure.host.progress import TerminalProgress

    with TerminalProgress() as progress:
        yield NodeClient.named(os.environ, home, progress)


def refuse_elsewhere(command: str) -> None:
    """Raises InvalidValue for a command that is about this machine, where FCRUN_HOST or --host names another."""
    if os.environ.get("FCRUN_HOST"):
        from perdure.errors import InvalidValue

        raise InvalidValue(
            f"fcrun {command} is about this machine, and FCRUN_HOST (or --host) names {os.environ['FCRUN_HOST']}",
            hint="Run it there, or leave that out.",
        )


def tell_if_asleep(info: SandboxInfo) -> None:
    """On a terminal: why it takes a moment now."""
    if info.state == "suspended":
        tell_waking(info.name)


def tell_waking(name: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"fcrun: {name} is suspended: resuming it\n")


Result = TypeVar("Result")


def _print_ref(ref: str, _: object) -> None:
    print(ref, flush=True)


def each(refs: Iterable[str], act: Callable[[str], Result], show: Callable[[str, Result], None] = _print_ref) -> int:
    """Do it for each, show each that worked (its name), go on after one that failed; 125 if any did."""
    status = 0
    for ref in refs:
        try:
            result = act(ref)
        except PerdureError as error:
            sys.stderr.write(f"fcrun: {error}\n")
            status = FAILED
        else:
            show(ref, result)
    return status
