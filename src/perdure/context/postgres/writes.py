"""What a batch writes, as statements: one per table, its columns as arrays. Pure."""

from __future__ import annotations

import zlib
from typing import Any

from perdure.context.changes import State
from perdure.context.postgres import schema
from perdure.context.postgres.exchange import Asked


def writes(state: State, was_kept: set[tuple[str, str]], lease: str) -> list[Asked]:
    """In the order in which they are to be done. was_kept: what was there before, of what is kept."""
    runs = [(run_id, state.runs[run_id]) for run_id in state.changed_runs]
    keeps = [(*kept, state.kept[kept], value) for kept, value in state.keeps.items() if value is not None]
    statements: list[Asked] = [
        (schema.PRUNE, [(run_id,) for run_id in state.dropped_logs]),
        (schema.DROP_ENTRIES, [(run_id,) for run_id in state.dropped_logs]),
        (schema.CLEAR_ENTRIES, state.cleared),
        (schema.RESTORE, [(run_id,) for run_id in state.restored_logs]),
        (schema.DROP_KINDS, [(kind,) for kind in state.dropped_kinds]),
        (schema.RELEASE_KEYS, [(run_id,) for run_id in state.released_keys]),
        (schema.INSERT_RUNS, [(*row, "" if row[-1] else lease) for row in state.new_runs.values()]),
        (schema.DELETE_TAGS, [(run_id,) for run_id in state.retagged]),
        (schema.INSERT_TAGS, state.new_tags),
        (schema.INSERT_BRANCHES, state.new_branches),
        (schema.MOVE_RUNS, [(run_id, r.epoch, r.branch) for run_id, r in runs if r.listed is None]),
        (
            schema.UPDATE_RUNS,
            [
                (run_id, r.epoch, r.branch, r.version, r.value, *r.listed, "" if r.listed.released else lease)
                for run_id, r in runs
                if r.listed is not None
            ],
        ),
        (schema.INSERT_BLOBS, [row for _, row in sorted(state.blobs.items())]),  # in one order: no two wait for another
        (schema.INSERT_ENTRIES, state.entries),
        (
            schema.UPDATE_TIPS,
            [(*tip, *state.tips[tip], state.turns[tip].asked, state.turns[tip].replayed) for tip in state.changed_tips],
        ),
        (schema.SPEND, [(run_id, *spent.row) for run_id, spent in sorted(state.spent.items())]),
        (schema.SPEND_JOINTLY, _jointly(state, lease)),
        (schema.INSERT_KEPT, [row for row in keeps if row[:2] not in was_kept]),
        (schema.UPDATE_KEPT, [row for row in keeps if row[:2] in was_kept]),
        (schema.REMOVE_BLOBS, state.removed_blobs),
        (schema.COUNT_SWEEP, [(state.sweep,)] if state.is_sweep else []),
        (schema.DROP, [kept for kept, value in state.keeps.items() if value is None]),
    ]
    return [(statement, rows) for statement, rows in statements if rows]


def _jointly(state: State, lease: str) -> list[tuple[Any, ...]]:
    part = zlib.crc32(lease.encode()) % schema.PARTS
    return [(*of, part, *spent.row) for of, spent in sorted(state.joint.items()) if spent.is_any]
