"""What is read, the same on every database. Parameters are ``:name``; casts say their types where nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

# The head of a run with the last seq of its current branch, the turns of all, and what they have cost.
HEAD = """
SELECT r.run_id, r.key, r.created, r.epoch, r.branch, b.seq, r.version, r.value, r.pruned,
    (SELECT CAST(sum(t.turns_asked) AS BIGINT) FROM branches t WHERE t.run_id = r.run_id),
    (SELECT CAST(sum(t.turns_replayed) AS BIGINT) FROM branches t WHERE t.run_id = r.run_id),
    s.calls, s.input_tokens, s.output_tokens, s.cached_tokens, s.cache_written_tokens, s.cost, s.unpriced, s.estimated
FROM runs r JOIN branches b ON b.run_id = r.run_id AND b.branch = r.branch
    LEFT JOIN spent s ON s.run_id = r.run_id
"""

HEAD_OF = HEAD + "WHERE r.run_id = :run_id"
HEAD_OF_KEY = HEAD + "WHERE r.key = :key"

JOINTLY = """
SELECT CAST(sum(calls) AS BIGINT), CAST(sum(input_tokens) AS BIGINT), CAST(sum(output_tokens) AS BIGINT),
    CAST(sum(cached_tokens) AS BIGINT), CAST(sum(cache_written_tokens) AS BIGINT), CAST(sum(cost) AS BIGINT),
    CAST(sum(unpriced) AS BIGINT), CAST(sum(estimated) AS BIGINT)
FROM spent_jointly WHERE budget = :budget AND period = :period
"""

BRANCHES = "SELECT branch, parent, fork_seq, seq, parent_run FROM branches WHERE run_id = :run_id ORDER BY branch"

# The way from a branch (NULL: the current one) up to the root, through other runs where it is a fork's: (run_id,
# branch; its own entries are those above fork_seq, up to upto).
PATH = """
WITH RECURSIVE path (run_id, branch, parent_run, parent, fork_seq, upto) AS (
    SELECT run_id, branch, COALESCE(parent_run, run_id), parent, fork_seq, seq FROM branches
    WHERE run_id = :run_id
        AND branch = COALESCE(CAST(:branch AS INTEGER), (SELECT branch FROM runs WHERE run_id = :run_id))
    UNION ALL
    SELECT b.run_id, b.branch, COALESCE(b.parent_run, b.run_id), b.parent, b.fork_seq,
        CASE WHEN path.fork_seq < path.upto THEN path.fork_seq ELSE path.upto END
    FROM path JOIN branches b ON b.run_id = path.parent_run AND b.branch = path.parent
)
"""

# The hash of the entry that a fork is at, the run that its chain begins in, and the forked run's newest branch.
FORK = (
    PATH
    + """
SELECT (SELECT e.hash FROM path JOIN entries e ON e.run_id = path.run_id AND e.branch = path.branch
            AND e.seq > path.fork_seq AND e.seq <= path.upto WHERE e.seq = :seq),
       (SELECT run_id FROM path WHERE parent IS NULL),
       (SELECT max(branch) FROM branches WHERE run_id = :run_id)
"""
)

LINEAGE = PATH + "SELECT run_id, branch, fork_seq, upto FROM path"

ENTRY = "e.run_id, e.branch, e.seq, e.epoch, e.time, e.kind, e.key, e.payload, e.hash"

# A pruned run has none, whatever is just being brought back.
_PAGE = (
    PATH
    + f"""
SELECT {ENTRY}
FROM path JOIN entries e ON e.run_id = path.run_id AND e.branch = path.branch
    AND e.seq > :after AND e.seq > path.fork_seq AND e.seq <= path.upto
    AND (SELECT r.pruned FROM runs r WHERE r.run_id = path.run_id) = 0
"""
)

READ = (
    _PAGE
    + """
    AND (CAST(:kind AS TEXT) IS NULL OR e.kind = :kind
        OR (:kind LIKE '%.' AND substr(e.kind, 1, length(:kind)) = :kind))
    AND (CAST(:key AS TEXT) IS NULL OR e.key = :key OR (:key LIKE '%/' AND substr(e.key, 1, length(:key)) = :key))
ORDER BY e.seq LIMIT :limit
"""
)

# The same of one kind that has an index of its own: what a run waited for, and which children it has.
WAITS = "wait.started"
READ_WAITS = _PAGE + f"    AND e.kind = '{WAITS}' ORDER BY e.seq LIMIT :limit"

FIND = (
    PATH
    + f"""
SELECT {ENTRY}
FROM path JOIN entries e ON e.run_id = path.run_id AND e.key = :key AND e.branch = path.branch AND e.seq <= path.upto
ORDER BY e.seq
"""
)

# What is stored under a branch itself, also of a run that was pruned.
OWN = f"""
SELECT {ENTRY} FROM entries e
WHERE run_id = :run_id AND branch = :branch AND seq > :after AND seq <= :upto ORDER BY seq LIMIT :limit
"""

# The same, the last first, of some kind.
_NEWEST = f"""
SELECT {ENTRY} FROM entries e
WHERE run_id = :run_id AND branch = :branch AND seq > :after AND seq <= :upto
    AND (CAST(:kind AS TEXT) IS NULL OR e.kind = :kind)
"""
OWN_NEWEST = _NEWEST + "ORDER BY seq DESC LIMIT :limit"


class ByKey(NamedTuple):
    """How entries are found by their keys: each database has its own index of them."""

    find: str  # those with ``key`` along a branch
    some: Callable[[int], str]  # those with one of so many, ``key0`` and on, in any order
    newest: str  # of what is stored under a branch itself, the last first
    has: str = ""  # whether there is any of those, to be asked before; "": ``newest`` knows it as quickly


def _some(keys: int) -> str:
    # The signs keep the planner from looking through the whole branch by its seqs, in place of the keys.
    by_key = FIND.replace("e.key = :key", f"e.key IS NOT NULL AND e.key IN ({slots(keys)})")
    return by_key.replace("e.branch = path.branch AND e.seq <=", "+e.branch = path.branch AND +e.seq <=")


def slots(keys: int) -> str:
    return ", ".join(f":key{number}" for number in range(keys))


# By the index of keys of the table itself. Its last entry of a key is looked for from the branch's end, until it has
# found enough; so it is asked before whether there is one.
BY_KEY = ByKey(
    find=FIND,
    some=_some,
    newest=_NEWEST + "    AND e.key = :key ORDER BY seq DESC LIMIT :limit",
    has="""
SELECT 1 FROM entries e
WHERE run_id = :run_id AND key = :key AND +branch = :branch AND +seq > :after AND +seq <= :upto LIMIT 1
""",
)
KEPT = """
SELECT kind, name, version, value FROM kept
WHERE kind = :kind AND (CAST(:name AS TEXT) IS NULL OR name = :name) ORDER BY name
"""

TIP_HASHES = "SELECT branch, hash FROM branches WHERE run_id = :run_id"

LINEAGE_ID = "SELECT lineage FROM meta"

# How far a branch is, and the hash of one of its entries.
STILL_THERE = """
SELECT b.seq, (SELECT e.hash FROM entries e WHERE e.run_id = b.run_id AND e.branch = b.branch AND e.seq = :seq)
FROM branches b WHERE b.run_id = :run_id AND b.branch = :branch
"""

# For a sweep: what may refer to blobs, page by page; the digests in it are looked for where it is read.
# A run that was pruned goes on no more: what only its summary mentions (its source, its pack) it does not need.
SUMMARIES = "SELECT run_id, value FROM runs WHERE run_id > :after AND pruned = 0 ORDER BY run_id LIMIT :limit"
ALL_KEPT = "SELECT value FROM kept"
PAYLOADS = """
SELECT run_id, branch, seq, payload FROM entries
WHERE (run_id, branch, seq) > (:run_id, :branch, :seq) ORDER BY run_id, branch, seq LIMIT :limit
"""
BLOB_ROWS = "SELECT digest, refs, sweep, length(content) FROM blobs WHERE digest > :after ORDER BY digest LIMIT :limit"
# Of an entry of a run that has its log.
HASH_AT = """
SELECT e.hash FROM entries e JOIN runs r ON r.run_id = e.run_id AND r.pruned = 0
WHERE e.run_id = :run_id AND e.branch = :branch AND e.seq = :seq
"""
