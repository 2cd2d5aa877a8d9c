"""The tables of the context log on SQLite, and what is read and written in the writer's transactions."""

from __future__ import annotations

from perdure.context import queries

APPLICATION_ID = 0x50445245  # "PDRE", in the file's header (PRAGMA application_id)
VERSION = 8  # PRAGMA user_version
KEYED_BY = 32  # so many entries of a branch are put into ``calls`` at once

# Its columns, which version 6 takes over as they were.
_ENTRY = """
    run_id  TEXT NOT NULL,
    branch  INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    epoch   INTEGER NOT NULL,
    time    REAL NOT NULL,              -- seconds since 1970
    kind    TEXT NOT NULL,
    key     TEXT,                       -- of the call it belongs to
    payload BLOB NOT NULL,              -- canonical JSON, large parts as references
    hash    BLOB NOT NULL,              -- 32 bytes
    PRIMARY KEY (run_id, branch, seq)
"""

SCHEMA = f"""
-- One row per run: its fence and the owner's summary.
CREATE TABLE runs (
    run_id  TEXT PRIMARY KEY,
    key     TEXT UNIQUE,                -- the caller's idempotency key
    created REAL NOT NULL,
    epoch   INTEGER NOT NULL,           -- who may write: never goes down
    branch  INTEGER NOT NULL,           -- the current one
    version INTEGER NOT NULL,           -- of value, for compare-and-set
    value   BLOB NOT NULL               -- canonical JSON
) STRICT;

-- A branch shares its parent's entries up to and including fork_seq.
CREATE TABLE branches (
    run_id   TEXT NOT NULL REFERENCES runs,
    branch   INTEGER NOT NULL,
    parent   INTEGER,
    fork_seq INTEGER NOT NULL,
    seq      INTEGER NOT NULL,          -- of its last entry (fork_seq while it has none)
    hash     BLOB NOT NULL,             -- of that entry
    PRIMARY KEY (run_id, branch)
) STRICT, WITHOUT ROWID;

CREATE TABLE entries ({_ENTRY}) STRICT, WITHOUT ROWID;
CREATE INDEX entries_by_key ON entries (run_id, key) WHERE key IS NOT NULL;

CREATE TABLE blobs (
    digest  BLOB PRIMARY KEY,           -- sha256 of the content
    zstd    INTEGER NOT NULL,           -- 1: content is a zstd frame
    content BLOB NOT NULL
) STRICT;

CREATE TRIGGER entries_never_change BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'entries are immutable'); END;
CREATE TRIGGER entries_never_go     BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'entries are immutable'); END;
CREATE TRIGGER blobs_never_change   BEFORE UPDATE ON blobs   BEGIN SELECT RAISE(ABORT, 'blobs are immutable'); END;
CREATE TRIGGER epochs_never_go_back BEFORE UPDATE OF epoch ON runs WHEN NEW.epoch < OLD.epoch
    BEGIN SELECT RAISE(ABORT, 'an epoch never goes down'); END;

PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = 1;
"""

# What makes version N of a database of version N - 1, in one transaction.
MIGRATIONS = {
    2: """
-- What the owner keeps beside the runs: queues, schedules …
CREATE TABLE kept (
    kind    TEXT NOT NULL,
    name    TEXT NOT NULL,
    version INTEGER NOT NULL,           -- of value, for compare-and-set
    value   BLOB NOT NULL,              -- canonical JSON
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;
""",
    3: "ALTER TABLE branches ADD COLUMN parent_run TEXT;",  # NULL: parent is a branch of this run
    4: """
CREATE TABLE meta (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    lineage TEXT NOT NULL,              -- made with the log: a copy of it has the same
    sweep   INTEGER NOT NULL            -- how often blobs that nothing refers to were looked for
) STRICT;
INSERT INTO meta VALUES (1, lower(hex(randomblob(16))), 0);

-- Copies of what is in value, to list runs by.
ALTER TABLE runs ADD COLUMN state    TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN name     TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN parent   TEXT;
ALTER TABLE runs ADD COLUMN released INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN pruned   INTEGER NOT NULL DEFAULT 0; -- 1: its entries were dropped
UPDATE runs SET state = perdure_listed(value, 0), name = perdure_listed(value, 1), released = perdure_listed(value, 3);
CREATE INDEX runs_by_created ON runs (created, run_id);
CREATE INDEX runs_by_state   ON runs (state, created, run_id);
CREATE INDEX runs_by_name    ON runs (name) WHERE name <> '';
CREATE INDEX runs_by_parent  ON runs (parent) WHERE parent IS NOT NULL;
CREATE INDEX runs_in_use     ON runs (created, run_id) WHERE released = 0;
CREATE TABLE tags (
    run_id TEXT NOT NULL REFERENCES runs,
    name   TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (name, value, run_id)
) STRICT, WITHOUT ROWID;

ALTER TABLE blobs ADD COLUMN refs  BLOB NOT NULL DEFAULT x''; -- the digests that it refers to, 32 bytes each
ALTER TABLE blobs ADD COLUMN sweep INTEGER NOT NULL DEFAULT 0; -- the last one before something referred to it anew
DROP TRIGGER blobs_never_change;
UPDATE blobs SET refs = perdure_references(zstd, content);
CREATE TRIGGER blobs_never_change BEFORE UPDATE OF digest, zstd, content, refs ON blobs
    BEGIN SELECT RAISE(ABORT, 'blobs are immutable'); END;
DROP TRIGGER entries_never_go;
CREATE TRIGGER entries_never_go BEFORE DELETE ON entries
    WHEN NOT (SELECT pruned FROM runs WHERE run_id = OLD.run_id)
    BEGIN SELECT RAISE(ABORT, 'entries are immutable'); END;
""",
    5: """
-- Counted as they are written, so that no list counts entries.
ALTER TABLE branches ADD COLUMN turns_asked    INTEGER NOT NULL DEFAULT 0; -- entries model.started of this branch
ALTER TABLE branches ADD COLUMN turns_replayed INTEGER NOT NULL DEFAULT 0; -- entries model.replayed
UPDATE branches AS b SET (turns_asked, turns_replayed) = (
    SELECT COALESCE(sum(e.kind = 'model.started'), 0), COALESCE(sum(e.kind = 'model.replayed'), 0)
    FROM entries e WHERE e.run_id = b.run_id AND e.branch = b.branch);
CREATE INDEX branches_of_forks ON branches (parent_run) WHERE parent_run IS NOT NULL;
CREATE INDEX entries_that_wait ON entries (run_id, branch, seq) WHERE kind = 'wait.started';
""",
    6: f"""
-- In the order in which they come: the entries of many runs in one commit then lie side by side, on few pages.
CREATE TABLE arrived ({_ENTRY}) STRICT;
INSERT INTO arrived SELECT * FROM entries;
DROP TABLE entries;
ALTER TABLE arrived RENAME TO entries;
CREATE INDEX entries_by_key ON entries (run_id, key, branch, seq) WHERE key IS NOT NULL;
CREATE INDEX entries_that_wait ON entries (run_id, branch, seq) WHERE kind = 'wait.started';
CREATE TRIGGER entries_never_change BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'entries are immutable'); END;
CREATE TRIGGER entries_never_go BEFORE DELETE ON entries
    WHEN NOT (SELECT pruned FROM runs WHERE run_id = OLD.run_id)
    BEGIN SELECT RAISE(ABORT, 'entries are immutable'); END;
""",
    7: f"""
-- Which entries have a key: of each branch those up to the last one whose seq {KEYED_BY} divides, which brings the
-- keys of {KEYED_BY}. When each entry brought its own, a commit for 64 runs changed 64 pages more.
CREATE TABLE calls (
    run_id TEXT NOT NULL,
    key    TEXT NOT NULL,
    branch INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    PRIMARY KEY (run_id, key, branch, seq)
) STRICT, WITHOUT ROWID;
INSERT INTO calls SELECT run_id, e.key, branch, e.seq FROM entries e JOIN branches b USING (run_id, branch)
    WHERE e.key IS NOT NULL AND e.seq <= b.seq / {KEYED_BY} * {KEYED_BY} ORDER BY run_id, e.key, branch, e.seq;
DROP INDEX entries_by_key;
""",
    8: """
-- Counted as the ends of turns are written (context.spending), over all branches of a run.
CREATE TABLE spent (
    run_id               TEXT PRIMARY KEY REFERENCES runs,
    calls                INTEGER NOT NULL,
    input_tokens         INTEGER NOT NULL,
    output_tokens        INTEGER NOT NULL,
    cached_tokens        INTEGER NOT NULL,
    cache_written_tokens INTEGER NOT NULL,
    cost                 INTEGER NOT NULL,  -- billionths of a dollar
    unpriced             INTEGER NOT NULL,  -- turns without a known price
    estimated            INTEGER NOT NULL   -- turns whose tokens are estimates
) STRICT, WITHOUT ROWID;

-- The same of all runs that a budget is for, whether they are pruned or not.
CREATE TABLE spent_jointly (
    budget               TEXT NOT NULL,     -- its name: a pattern of agents' names
    period               TEXT NOT NULL,     -- a day or month of UTC (2026-11-27, 2026-11), or '': for ever
    calls                INTEGER NOT NULL,
    input_tokens         INTEGER NOT NULL,
    output_tokens        INTEGER NOT NULL,
    cached_tokens        INTEGER NOT NULL,
    cache_written_tokens INTEGER NOT NULL,
    cost                 INTEGER NOT NULL,
    unpriced             INTEGER NOT NULL,
    estimated            INTEGER NOT NULL,
    PRIMARY KEY (budget, period)
) STRICT, WITHOUT ROWID;
""",
}

# The entries of a call along a branch, whether ``calls`` has them or not yet.
FIND = (
    queries.PATH
    + f"""
SELECT {queries.ENTRY}
FROM path JOIN calls c ON c.run_id = path.run_id AND c.key = :key AND c.branch = path.branch AND c.seq <= path.upto
    JOIN entries e ON e.run_id = c.run_id AND e.branch = c.branch AND e.seq = c.seq
UNION ALL
SELECT {queries.ENTRY}
FROM path JOIN branches b ON b.run_id = path.run_id AND b.branch = path.branch
    JOIN entries e ON e.run_id = b.run_id AND e.branch = b.branch
        AND e.seq > b.seq / {KEYED_BY} * {KEYED_BY} AND e.seq <= path.upto
WHERE e.key = :key
ORDER BY 3
"""
)
# Of those that are stored under a branch itself, the last first.
NEWEST = f"""
SELECT {queries.ENTRY} FROM (
    SELECT * FROM (
        SELECT c.seq FROM calls c CROSS JOIN entries e ON e.run_id = c.run_id AND e.branch = c.branch AND e.seq = c.seq
        WHERE c.run_id = :run_id AND c.key = :key AND c.branch = :branch AND c.seq > :after AND c.seq <= :upto
            AND (:kind IS NULL OR e.kind = :kind)
        ORDER BY c.seq DESC LIMIT :limit
    )
    UNION ALL
    SELECT e.seq FROM branches b CROSS JOIN entries e ON e.run_id = b.run_id AND e.branch = b.branch
        AND e.seq > max(b.seq / {KEYED_BY} * {KEYED_BY}, :after) AND e.seq <= :upto
    WHERE b.run_id = :run_id AND b.branch = :branch AND e.key = :key AND (:kind IS NULL OR e.kind = :kind)
) found CROSS JOIN entries e ON e.run_id = :run_id AND e.branch = :branch AND e.seq = found.seq
ORDER BY e.seq DESC LIMIT :limit
"""


def _some(keys: int) -> str:
    return FIND.replace("key = :key", f"key IN ({queries.slots(keys)})")


BY_KEY = queries.ByKey(find=FIND, some=_some, newest=NEWEST)

RUN = "SELECT epoch, branch, version FROM runs WHERE run_id = ?"
TIP = "SELECT seq, hash FROM branches WHERE run_id = ? AND branch = ?"

INSERT_RUN = """
INSERT INTO runs (run_id, key, created, epoch, branch, version, value, state, name, parent, released)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
DELETE_TAGS = "DELETE FROM tags WHERE run_id = ?"
INSERT_TAG = "INSERT INTO tags (run_id, name, value) VALUES (?, ?, ?)"
RELEASE_KEY = "UPDATE runs SET key = NULL WHERE run_id = ?"
MOVE_RUN = "UPDATE runs SET epoch = ?, branch = ? WHERE run_id = ?"
UPDATE_RUN = """
UPDATE runs SET epoch = ?, branch = ?, version = ?, value = ?, state = ?, name = ?, parent = ?, released = ?
WHERE run_id = ?
"""
INSERT_BRANCH = """
INSERT INTO branches (run_id, branch, parent, fork_seq, seq, hash, parent_run, turns_asked, turns_replayed)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
UPDATE_TIP = """
UPDATE branches SET seq = ?, hash = ?, turns_asked = turns_asked + ?, turns_replayed = turns_replayed + ?
WHERE run_id = ? AND branch = ?
"""
_ADDED = """
DO UPDATE SET calls = calls + excluded.calls, input_tokens = input_tokens + excluded.input_tokens,
    output_tokens = output_tokens + excluded.output_tokens, cached_tokens = cached_tokens + excluded.cached_tokens,
    cache_written_tokens = cache_written_tokens + excluded.cache_written_tokens, cost = cost + excluded.cost,
    unpriced = unpriced + excluded.unpriced, estimated = estimated + excluded.estimated
"""
SPEND = f"INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run_id) {_ADDED}"
SPEND_JOINTLY = f"""
INSERT INTO spent_jointly VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (budget, period) {_ADDED}
"""
INSERT_ENTRY = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
KEYS = """
INSERT OR IGNORE INTO calls SELECT run_id, key, branch, seq FROM entries
WHERE run_id = ? AND branch = ? AND seq > ? AND seq <= ? AND key IS NOT NULL
"""
# Of a run that was pruned, went on, and has its entries again.
ALL_KEYS = f"""
INSERT OR IGNORE INTO calls SELECT run_id, e.key, branch, e.seq FROM entries e JOIN branches b USING (run_id, branch)
WHERE run_id = ? AND e.key IS NOT NULL AND e.seq <= b.seq / {KEYED_BY} * {KEYED_BY}
"""
INSERT_BLOB = """
INSERT INTO blobs (digest, zstd, content, refs, sweep) VALUES (?, ?, ?, ?, (SELECT sweep FROM meta))
ON CONFLICT (digest) DO UPDATE SET sweep = excluded.sweep WHERE sweep < excluded.sweep
"""
BLOB = "SELECT zstd, content, refs FROM blobs WHERE digest = ?"
KEPT = "SELECT version FROM kept WHERE kind = ? AND name = ?"
KEEP = "INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)"
DROP = "DELETE FROM kept WHERE kind = ? AND name = ?"
DROP_KIND = "DELETE FROM kept WHERE kind = ?"
# Also through forks whose own entries were dropped already.
SHARERS = """
WITH RECURSIVE below (run_id) AS (
    SELECT run_id FROM branches WHERE parent_run = ?
    UNION SELECT b.run_id FROM below JOIN branches b ON b.parent_run = below.run_id
)
SELECT r.run_id FROM below JOIN runs r ON r.run_id = below.run_id WHERE r.pruned = 0 ORDER BY r.run_id
"""
PRUNE = "UPDATE runs SET pruned = 1 WHERE run_id = ?"
DROP_ENTRIES = "DELETE FROM entries WHERE run_id = ?"
DROP_KEYS = "DELETE FROM calls WHERE run_id = ?"
PRUNED = "SELECT pruned FROM runs WHERE run_id = ?"
COUNTS = "SELECT branch, count(*) FROM entries WHERE run_id = ? GROUP BY branch"
CLEAR_ENTRIES = "DELETE FROM entries WHERE run_id = ? AND branch = ? AND seq <= ?"
CLEAR_KEYS = "DELETE FROM calls WHERE run_id = ? AND branch = ? AND seq <= ?"
RESTORE = "UPDATE runs SET pruned = 0 WHERE run_id = ?"
SWEEP = "SELECT sweep FROM meta"
COUNT_SWEEP = "UPDATE meta SET sweep = ?"
REMOVE_BLOB = "DELETE FROM blobs WHERE digest = ? AND sweep < ?"
