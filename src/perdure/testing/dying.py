"""A writer to a store that is killed (SIGKILL) at its Nth durable step: just before it, or just after it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perdure.execution.snapshots import capture
from perdure.execution.snapshots.care import compact, garbage
from perdure.execution.snapshots.store import Store

STEPS = ("fsync", "rename", "replace", "unlink")
DEADLINE_S = 60.0
KILLED = -signal.SIGKILL


def run(folder: Path, action: str, digest: str, at: int, *, done: bool) -> int:
    """Do the action in a process of its own; its exit status: 0, or KILLED.

    done: the Nth step still happens. ``folder`` is a ``Bench``'s; a capture takes its ``captured`` and ``overlay``.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    writer = context.Process(target=_write, args=(str(folder), action, digest, at, done))
    writer.start()
    writer.join(DEADLINE_S)
    if writer.exitcode is None:
        writer.kill()
        raise AssertionError(f"the writer did not end within {DEADLINE_S:g} s")
    return writer.exitcode


def _write(folder: str, action: str, digest: str, at: int, done: bool) -> None:
    root = Path(folder)
    store = Store(root / "store")
    _die_at(at, done)
    templates = root / "templates"
    if action == "capture":
        capture.pack(
            store,
            folder=root / "captured",
            overlay=root / "overlay",
            parent=store.get(digest),
            templates=templates,
            sandbox_id="0123456789ab",
            image_digest="",
            working_set=(1, 2),
        )
    elif action == "compact":
        compact.compact(store, digest, templates_folder=templates)
    elif action == "collect":
        garbage.collect(store, named=lambda one: one == digest, templates=templates, templates_in_use=lambda: set())
    else:
        raise AssertionError(action)


def _die_at(at: int, done: bool) -> None:
    left = at

    def dying(step: Callable[..., Any]) -> Callable[..., Any]:
        def taken(*values: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                try:
                    if done:
                        step(*values, **named)
                finally:
                    os.kill(os.getpid(), signal.SIGKILL)
            return step(*values, **named)

        return taken

    for name in STEPS:
        setattr(os, name, dying(getattr(os, name)))
