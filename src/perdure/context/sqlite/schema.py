"""The tables of the context log on SQLite, and what is read and written in the writer's transactions."""

from __future__ import annotations

from perdure.context.queries import PATH

APPLICATION_ID = 0x50445245  # "PDRE", in the file's header (PRAGMA application_id)
VERSION = 3  # PRAGMA user_version

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

CREATE TABLE entries (
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
) STRICT, WITHOUT ROWID;
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
}

TIP = "SELECT seq, hash FROM branches WHERE run_id = ? AND branch = ?"

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

INSERT_RUN = "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)"
RELEASE_KEY = "UPDATE runs SET key = NULL WHERE run_id = ?"
UPDATE_RUN = "UPDATE runs SET epoch = ?, branch = ?, version = ?, value = COALESCE(?, value) WHERE run_id = ?"
INSERT_BRANCH = """
INSERT INTO branches (run_id, branch, parent, fork_seq, seq, hash, parent_run) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
UPDATE_TIP = "UPDATE branches SET seq = ?, hash = ? WHERE run_id = ? AND branch = ?"
INSERT_ENTRY = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
INSERT_BLOB = "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?)"
BLOB = "SELECT zstd, content FROM blobs WHERE digest = ?"
KEPT = "SELECT version FROM kept WHERE kind = ? AND name = ?"
KEEP = "INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)"
DROP = "DELETE FROM kept WHERE kind = ? AND name = ?"
