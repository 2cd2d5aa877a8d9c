"""fcrun snapshot explain"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from perdure.cli.fcrun import _format

if TYPE_CHECKING:
    from perdure.model import MemoryUse
    from perdure.reports import Explanation, SpaceUse, WorkingSetUse

NAME = "explain"
HELP = "Show where the bytes of a snapshot are"
GROUP = "Snapshots"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", default="text", choices=("text", "json"))
    parser.add_argument("snapshot", metavar="SNAPSHOT")


def run(options: argparse.Namespace) -> int:
    import msgspec

    from perdure.cli.fcrun._node import node

    with node() as client:
        found = client.store.explain(options.snapshot)
    if options.format == "json":
        print(json.dumps(msgspec.to_builtins(found)))
        return 0
    for line in text(found):
        print(line)
    return 0


def text(found: Explanation) -> Iterator[str]:
    """The lines of the report."""
    size = _format.size
    yield f"snapshot {found.digest}"
    yield (
        f"  its capture stored {size(found.stored_bytes)}; a restore needs {size(found.total_bytes)}; "
        f"removing it alone would free {size(found.own_bytes)}"
    )
    yield from _space("memory", found.memory)
    yield from _space("disk", found.disk)
    yield f"device state  {size(found.state_bytes)}"
    yield from _working_set(found.working_set)
    if found.memory_use is not None:
        yield from _memory_use(found.memory_use)
    if found.compaction_due:
        yield f"Compaction is due: fcrun snapshot compact {_format.digest(found.digest)}"


def _space(name: str, space: SpaceUse) -> Iterator[str]:
    size = _format.size
    yield f"{name}  {size(space.size_bytes)}: {size(space.zero_bytes)} zeros, {size(space.template_bytes)} template"
    if not space.layers:
        return
    yield f"  {'LAYER':<12}  {'LIVE':>8}  {'STORED':>8}  {'DEAD':>8}  {'STORED':>8}  {'FRAMES':>6}"
    for layer in space.layers:
        yield (
            f"  {_format.digest(layer.digest)}  {size(layer.live_bytes):>8}  {size(layer.live_stored_bytes):>8}  "
            f"{size(layer.dead_bytes):>8}  {size(layer.dead_stored_bytes):>8}  {layer.frames:>6}"
        )
    yield (
        f"  {size(space.duplicate_bytes)} of the live blocks have the content of another one; "
        f"the map takes {size(space.map_bytes)}"
    )


def _working_set(hot: WorkingSetUse) -> Iterator[str]:
    size = _format.size
    if not hot.blocks:
        yield "working set  not known: it is recorded when a restored machine is suspended"
        return
    yield f"working set  {hot.blocks} blocks: {size(hot.zero_bytes)} zeros, {size(hot.template_bytes)} template, "
    yield (
        f"  {size(hot.layer_bytes)} in {hot.frames} frames ({size(hot.frame_stored_bytes)}, {size(hot.frame_bytes)} "
        f"decompressed) in {hot.reads} pieces"
    )


def _memory_use(use: MemoryUse) -> Iterator[str]:
    def kib(count: int) -> str:
        return _format.size(count * 1024)

    yield (
        f"memory by owner  {kib(use.total_kib)}: {kib(use.anonymous_kib)} processes, {kib(use.page_cache_kib)} page "
        f"cache, {kib(use.kernel_kib)} kernel, {kib(use.shared_kib)} shared, {kib(use.free_kib)} free"
    )
    for process in use.processes:
        yield f"  {process.pid:>6}  {process.name:<16}  {kib(process.anonymous_kib):>8}"
