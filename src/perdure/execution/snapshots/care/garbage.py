"""Mark and sweep: what no sandbox, no tag and no reader needs goes. Blocking: run it in a thread.

The roots are the snapshots that the caller names, asked while nothing can be registered, and every tagged manifest. It
is safe beside captures (they hold ``Store.writing``), restores (``Store.reading``) and pulls (``Store.arriving``), of
other processes too, and waits for none of them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from perdure.errors import PerdureError
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.templates import described
from perdure.host.progress import Progress, silent
from perdure.linux import locks
from perdure.reports import Swept

_GONE = ".gone"  # a template on its way out: renamed first, so that a crash leaves it whole or out of the way
_NEW = ".new"  # NAME.new or NAME.HEX.new: one that is being built, under NAME.lock


def collect(
    store: Store,
    *,
    named: Callable[[str], bool],
    templates: Path | None = None,
    templates_in_use: Callable[[], set[str] | None] = lambda: None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Swept:
    """Delete what nobody needs, or with ``dry_run`` only say what that is.

    named: whether somebody names the snapshot of this digest. It is asked while nothing is registered, so whoever has
    stored a snapshot and not yet written its name down must be counted as naming it.
    templates: ``home.templates``. A template goes when no snapshot that stays lies over it and it is not among
    ``templates_in_use`` (names; None: not known, and all stay).
    """
    progress("Collecting garbage", 0, 0)

    def unneeded(digest: str) -> bool:
        return not named(digest) and digest not in store.tags().values()

    there: list[Path] = []
    in_use: set[str] | None = None
    if templates is not None and templates.is_dir():
        there = sorted(templates.iterdir())  # first: one that is built from now on is not looked at
        in_use = templates_in_use()
    going: list[Path] = []

    def choose(swept: Swept) -> None:  # before a pull can begin that finds one here
        needed = _needed_templates(store, swept)
        for path in [] if in_use is None or needed is None else _unneeded(there, in_use | needed):
            swept.templates.append(path.name)
            swept.template_bytes += _size(path)
            if not dry_run:
                with contextlib.suppress(FileNotFoundError):  # somebody began to build it anew in this moment
                    going.append(path.rename(path.with_name(f"{path.name}.{secrets.token_hex(4)}{_GONE}")))

    swept = store.sweep(unneeded, dry_run=dry_run, then=choose)
    for path in going:
        progress("Collecting garbage", 0, 0)
        shutil.rmtree(path, ignore_errors=True)  # what stays of it is taken the next time
    progress("Collecting garbage", 1, 1)
    return swept


def sweep_templates(templates: Path) -> None:
    """Remove what builds and removals that were killed left: a node that starts does it. Blocking."""
    for path in sorted(templates.iterdir()):
        if path.name.endswith(_GONE) or (path.name.endswith(_NEW) and not _is_being_built(path)):
            shutil.rmtree(path, ignore_errors=True)
        else:
            for fresh in path.glob("working-set.*"):  # it was to replace ``working-set``
                fresh.unlink(missing_ok=True)


def _needed_templates(store: Store, swept: Swept) -> set[str] | None:
    """Names and digests of those that snapshots lie over which stay, or come; None: one does not read, so it is not
    known."""
    needed = set()
    for digest in {*store.digests(), *store.leased()}:
        if digest in swept.forgotten:
            continue  # in a dry run it is still there
        try:
            config = store.get(digest).config
            needed |= {config.template, config.template_digest}
        except (PerdureError, OSError) as error:
            swept.unreadable.setdefault(digest, str(error))
    return None if swept.unreadable else needed


def _unneeded(there: Iterable[Path], needed: set[str]) -> Iterator[Path]:
    for path in there:
        if not path.is_dir():
            continue
        if path.name.endswith(_NEW):
            if not _is_being_built(path):
                yield path
        elif path.name.endswith(_GONE) or not {path.name, _digest(path)} & needed:
            yield path


def _is_being_built(new: Path) -> bool:
    return locks.is_held(new.with_name(new.name.partition(".")[0] + ".lock"))


def _digest(template: Path) -> str:
    """Of its content: one that came from another machine may have another name here."""
    try:
        return described(template.parent, template.name)[0]
    except (PerdureError, OSError):
        return template.name


def _size(folder: Path) -> int:
    """Bytes on the disk: memory is sparse."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(root) / name).stat().st_blocks * 512
    return total
