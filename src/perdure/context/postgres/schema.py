"""The tables of the context log on PostgreSQL, and what is read and written in the writer's transactions.

The columns are those of SQLite's (``context.sqlite.schema`` says what they are), and so are the versions up to 6.
"""

from __future__ import annotations

import re

from perdure.context import queries

FIRST_VERSION = 4
VERSION = 7

# What makes version N: of an empty schema, or of version N - 1, in one transaction.
MIGRATIONS = {
    4: """
CREATE TABLE meta (
    one     BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one),
    version INTEGER NOT NULL,
    lineage TEXT NOT NULL,
    sweep   BIGINT NOT NULL
);
INSERT INTO meta VALUES (TRUE, 4, replace(gen_random_uuid()::text, '-', ''), 0);

CREATE TABLE runs (
    run_id  TEXT COLLATE "C" PRIMARY KEY,
    key     TEXT UNIQUE,
    created DOUBLE PRECISION NOT NULL,
    epoch   BIGINT NOT NULL,
    branch  BIGINT NOT NULL,
    version BIGINT NOT NULL,
    value   BYTEA NOT NULL,
    state    TEXT COLLATE "C" NOT NULL,
    name     TEXT COLLATE "C" NOT NULL,
    parent   TEXT COLLATE "C",
    released INTEGER NOT NULL,
    pruned   INTEGER NOT NULL DEFAULT 0,
    server   TEXT COLLATE "C" NOT NULL DEFAULT '' -- that owns it; '': none, it is released
);
CREATE INDEX runs_by_server ON runs (server) WHERE server > '';
CREATE INDEX runs_by_created ON runs (created, run_id);
CREATE INDEX runs_by_state   ON runs (state, created, run_id);
CREATE INDEX runs_by_name    ON runs (name) WHERE name <> '';
CREATE INDEX runs_by_parent  ON runs (parent) WHERE parent IS NOT NULL;
CREATE INDEX runs_in_use     ON runs (created, run_id) WHERE released = 0;

-- A lease each (context.leases).
CREATE TABLE servers (
    server     TEXT COLLATE "C" PRIMARY KEY,
    generation BIGINT GENERATED ALWAYS AS IDENTITY,
    beat       BIGINT NOT NULL DEFAULT 0,
    facts      BYTEA NOT NULL           -- canonical JSON: what others are told of it
);

CREATE TABLE tags (
    run_id TEXT COLLATE "C" NOT NULL REFERENCES runs,
    name   TEXT COLLATE "C" NOT NULL,
    value  TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (name, value, run_id)
);

CREATE TABLE branches (
    run_id     TEXT COLLATE "C" NOT NULL REFERENCES runs,
    branch     BIGINT NOT NULL,
    parent     BIGINT,
    fork_seq   BIGINT NOT NULL,
    seq        BIGINT NOT NULL,
    hash       BYTEA NOT NULL,
    parent_run TEXT,
    PRIMARY KEY (run_id, branch)
);

CREATE TABLE entries (
    run_id  TEXT COLLATE "C" NOT NULL,
    branch  BIGINT NOT NULL,
    seq     BIGINT NOT NULL,
    epoch   BIGINT NOT NULL,
    time    DOUBLE PRECISION NOT NULL,
    kind    TEXT COLLATE "C" NOT NULL,
    key     TEXT,
    payload BYTEA NOT NULL,
    hash    BYTEA NOT NULL,
    PRIMARY KEY (run_id, branch, seq)
);
CREATE INDEX entries_by_key ON entries (run_id, key) WHERE key IS NOT NULL;

CREATE TABLE blobs (
    digest  BYTEA PRIMARY KEY,
    zstd    INTEGER NOT NULL,
    content BYTEA NOT NULL,
    refs    BYTEA NOT NULL,
    sweep   BIGINT NOT NULL
);
ALTER TABLE blobs ALTER content SET STORAGE EXTERNAL; -- it is packed already
ALTER TABLE blobs SET (toast_tuple_target = 4080); -- half a page stays in its row: nothing is looked up

CREATE TABLE kept (
    kind    TEXT COLLATE "C" NOT NULL,
    name    TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    value   BYTEA NOT NULL,
    PRIMARY KEY (kind, name)
);

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION '% (%)', TG_ARGV[0], TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER entries_never_change BEFORE UPDATE ON entries
    FOR EACH ROW EXECUTE FUNCTION refuse('entries are immutable');
CREATE FUNCTION refuse_unless_pruned() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    -- Without a run they are what an interrupted import left.
    IF COALESCE((SELECT pruned FROM runs WHERE run_id = OLD.run_id), 1) = 1 THEN RETURN OLD; END IF;
    RAISE EXCEPTION 'entries are immutable' USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER entries_never_go BEFORE DELETE ON entries FOR EACH ROW EXECUTE FUNCTION refuse_unless_pruned();
CREATE TRIGGER entries_are_never_emptied BEFORE TRUNCATE ON entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse('entries are immutable');
CREATE TRIGGER blobs_never_change BEFORE UPDATE OF digest, zstd, content, refs ON blobs
    FOR EACH ROW EXECUTE FUNCTION refuse('blobs are immutable');
CREATE TRIGGER epochs_never_go_back BEFORE UPDATE OF epoch ON runs
    FOR EACH ROW WHEN (NEW.epoch < OLD.epoch) EXECUTE FUNCTION refuse('an epoch never goes down');
""",
    5: """
ALTER TABLE branches ADD COLUMN turns_asked    BIGINT NOT NULL DEFAULT 0;
ALTER TABLE branches ADD COLUMN turns_replayed BIGINT NOT NULL DEFAULT 0;
UPDATE branches b SET turns_asked = c.asked, turns_replayed = c.replayed FROM (
    SELECT run_id, branch, count(*) FILTER (WHERE kind = 'model.started') AS asked,
        count(*) FILTER (WHERE kind = 'model.replayed') AS replayed
    FROM entries WHERE kind IN ('model.started', 'model.replayed') GROUP BY run_id, branch
) c WHERE c.run_id = b.run_id AND c.branch = b.branch;
CREATE INDEX branches_of_forks ON branches (parent_run) WHERE parent_run IS NOT NULL;
CREATE INDEX entries_that_wait ON entries (run_id, branch, seq) WHERE kind = 'wait.started';
""",
    # One word for it, here, in `perdure servers` and in what that is made of.
    6: """
ALTER TABLE servers RENAME COLUMN generation TO lease;
ALTER SEQUENCE servers_generation_seq RENAME TO servers_lease_seq;
""",
    7: """
CREATE TABLE spent (
    run_id               TEXT COLLATE "C" PRIMARY KEY REFERENCES runs,
    calls                BIGINT NOT NULL,
    input_tokens         BIGINT NOT NULL,
    output_tokens        BIGINT NOT NULL,
    cached_tokens        BIGINT NOT NULL,
    cache_written_tokens BIGINT NOT NULL,
    cost                 BIGINT NOT NULL,
    unpriced             BIGINT NOT NULL,
    estimated            BIGINT NOT NULL
);
CREATE TABLE spent_jointly (
    budget               TEXT COLLATE "C" NOT NULL,
    period               TEXT COLLATE "C" NOT NULL,
    part                 BIGINT NOT NULL,   -- of the sum: servers have each their own, and do not wait for one another
    calls                BIGINT NOT NULL,
    input_tokens         BIGINT NOT NULL,
    output_tokens        BIGINT NOT NULL,
    cached_tokens        BIGINT NOT NULL,
    cache_written_tokens BIGINT NOT NULL,
    cost                 BIGINT NOT NULL,
    unpriced             BIGINT NOT NULL,
    estimated            BIGINT NOT NULL,
    PRIMARY KEY (budget, period, part)
);
""",
}


def adapted(query: str) -> str:
    """A query with parameters as psycopg has them."""
    return re.sub(r"(?<![:\w]):([a-z_][a-z_0-9]*)", r"%(\1)s", query.replace("%", "%%"))


# -- what is known. The rows of runs are locked first, always in the same order; what is read after that holds.

RUNS = """
SELECT run_id, epoch, branch, version, %(server)s = '' OR server IN ('', %(server)s)
FROM runs WHERE run_id = ANY(%(runs)s) ORDER BY run_id FOR NO KEY UPDATE
"""
# Held until the transaction ends: nobody removes it meanwhile. The heartbeat is not in its way.
LEASE = "SELECT 1 FROM servers WHERE server = %(server)s FOR KEY SHARE"
# The same of what is thought to be known: a division by zero (and nothing is written) where it is not so any more.
SAME_RUNS = """
SELECT 1 / (count(*) = cardinality($1))::int FROM (
    SELECT FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[])
            AS w (run_id, epoch, branch, version, server)
        JOIN runs r ON r.run_id = w.run_id AND r.epoch = w.epoch AND r.branch = w.branch AND r.version = w.version
            AND (w.server = '' OR r.server IN ('', w.server))
    ORDER BY r.run_id FOR NO KEY UPDATE OF r
) same
"""
SAME_LEASE = "SELECT 1 / count(*)::int FROM (SELECT FROM servers WHERE server = ANY(%s::text[]) FOR KEY SHARE) same"
KEYS = "SELECT key, run_id FROM runs WHERE key = ANY(%(keys)s)"
TIPS = """
SELECT DISTINCT b.run_id, b.branch, b.seq, b.hash
FROM unnest(%(runs)s::text[], %(branches)s::bigint[]) AS w (run_id, branch)
    JOIN runs r ON r.run_id = w.run_id
    JOIN branches b ON b.run_id = r.run_id AND b.branch = COALESCE(w.branch, r.branch)
"""
FORK = adapted(queries.FORK)
KEPT = """
SELECT kind, name, version FROM kept WHERE (kind, name) IN (SELECT * FROM unnest(%(kinds)s::text[], %(names)s::text[]))
ORDER BY kind, name FOR UPDATE
"""

PRUNED = "SELECT run_id FROM runs WHERE run_id = ANY(%s) AND pruned = 1"
COUNTS = "SELECT branch, count(*) FROM entries WHERE run_id = %s GROUP BY branch"
SWEEP = "SELECT sweep FROM meta FOR UPDATE"
# Also through forks whose own entries were dropped already.
SHARERS = """
WITH RECURSIVE below (run_id) AS (
    SELECT run_id::text FROM branches WHERE parent_run = %s
    UNION SELECT b.run_id::text FROM below JOIN branches b ON b.parent_run = below.run_id
)
SELECT r.run_id FROM below JOIN runs r ON r.run_id = below.run_id WHERE r.pruned = 0 ORDER BY r.run_id
"""

# The writer looks for single rows: a plan made while a table was small is to be of use when it is not, and is kept.
PLANS = """
SET plan_cache_mode = force_generic_plan; SET jit = off;
SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off
"""
# What is acknowledged is on the disk, whatever the database's default is. What asks for more (a standby's) is left.
SYNCED = """
SELECT set_config('synchronous_commit', 'local', false) WHERE current_setting('synchronous_commit') = 'off'
"""

# -- what is written: one statement per table, its columns as arrays

COUNT_SWEEP = "UPDATE meta SET sweep = w.sweep FROM unnest(%s::bigint[]) AS w (sweep)"
REMOVE_BLOBS = """
DELETE FROM blobs b USING unnest(%s::bytea[], %s::bigint[]) AS w (digest, sweep)
WHERE b.digest = w.digest AND b.sweep < w.sweep
"""
PRUNE = "UPDATE runs SET pruned = 1 WHERE run_id = ANY(%s::text[])"
DROP_ENTRIES = "DELETE FROM entries WHERE run_id = ANY(%s::text[])"
CLEAR_ENTRIES = """
DELETE FROM entries e USING unnest(%s::text[], %s::bigint[], %s::bigint[]) AS w (run_id, branch, seq)
WHERE e.run_id = w.run_id AND e.branch = w.branch AND e.seq <= w.seq
"""
RESTORE = "UPDATE runs SET pruned = 0 WHERE run_id = ANY(%s::text[])"
RELEASE_KEYS = "UPDATE runs SET key = NULL WHERE run_id = ANY(%s::text[])"
INSERT_RUNS = """
INSERT INTO runs (run_id, key, created, epoch, branch, version, value, state, name, parent, released, server)
SELECT * FROM unnest(%s::text[], %s::text[], %s::float8[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bytea[],
    %s::text[], %s::text[], %s::text[], %s::int[], %s::text[])
"""
DELETE_TAGS = "DELETE FROM tags WHERE run_id IN (SELECT * FROM unnest(%s::text[]))"
INSERT_TAGS = "INSERT INTO tags (run_id, name, value) SELECT * FROM unnest(%s::text[], %s::text[], %s::text[])"
MOVE_RUNS = """
UPDATE runs r SET epoch = w.epoch, branch = w.branch
FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) AS w (run_id, epoch, branch) WHERE r.run_id = w.run_id
"""
UPDATE_RUNS = """
UPDATE runs r SET epoch = w.epoch, branch = w.branch, version = w.version, value = w.value,
    state = w.state, name = w.name, parent = w.parent, released = w.released,
    server = w.server
FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bytea[], %s::text[], %s::text[], %s::text[],
    %s::int[], %s::text[])
    AS w (run_id, epoch, branch, version, value, state, name, parent, released, server)
WHERE r.run_id = w.run_id
"""
INSERT_BRANCHES = """
INSERT INTO branches (run_id, branch, parent, fork_seq, seq, hash, parent_run, turns_asked, turns_replayed)
SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bytea[], %s::text[],
    %s::bigint[], %s::bigint[])
"""
INSERT_BLOBS = """
INSERT INTO blobs (digest, zstd, content, refs, sweep)
SELECT w.*, (SELECT sweep FROM meta) FROM unnest(%s::bytea[], %s::int[], %s::bytea[], %s::bytea[]) AS w
ON CONFLICT (digest) DO UPDATE SET sweep = EXCLUDED.sweep WHERE blobs.sweep < EXCLUDED.sweep
"""
INSERT_ENTRIES = """
INSERT INTO entries (run_id, branch, seq, epoch, time, kind, key, payload, hash)
SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::float8[], %s::text[], %s::text[],
    %s::bytea[], %s::bytea[])
"""
UPDATE_TIPS = """
UPDATE branches b SET seq = w.seq, hash = w.hash,
    turns_asked = b.turns_asked + w.asked, turns_replayed = b.turns_replayed + w.replayed
FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bytea[], %s::bigint[], %s::bigint[])
    AS w (run_id, branch, seq, hash, asked, replayed)
WHERE b.run_id = w.run_id AND b.branch = w.branch
"""
# The same where nobody is asked before what is known: only from the tip that it was thought to have (``remembered``).
MOVE_TIPS = """
WITH moved AS (
    UPDATE branches b SET seq = w.seq, hash = w.hash,
        turns_asked = b.turns_asked + w.asked, turns_replayed = b.turns_replayed + w.replayed
    FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bigint[], $6::bytea[], $7::bigint[],
        $8::bigint[]) AS w (run_id, branch, seq_before, hash_before, seq, hash, asked, replayed)
    WHERE b.run_id = w.run_id AND b.branch = w.branch AND b.seq = w.seq_before AND b.hash = w.hash_before
    RETURNING 1
)
SELECT 1 / (count(*) = cardinality($1))::int FROM moved
"""
_ADDED = """
DO UPDATE SET calls = s.calls + EXCLUDED.calls,
    input_tokens = s.input_tokens + EXCLUDED.input_tokens, output_tokens = s.output_tokens + EXCLUDED.output_tokens,
    cached_tokens = s.cached_tokens + EXCLUDED.cached_tokens,
    cache_written_tokens = s.cache_written_tokens + EXCLUDED.cache_written_tokens, cost = s.cost + EXCLUDED.cost,
    unpriced = s.unpriced + EXCLUDED.unpriced, estimated = s.estimated + EXCLUDED.estimated
"""
SPEND = f"""
INSERT INTO spent AS s SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
    %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
ON CONFLICT (run_id) {_ADDED}
"""
PARTS = 16  # of a sum that several servers add to
SPEND_JOINTLY = f"""
INSERT INTO spent_jointly AS s SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[],
    %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
ON CONFLICT (budget, period, part) {_ADDED}
"""
INSERT_KEPT = "INSERT INTO kept SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bytea[])"
UPDATE_KEPT = """
UPDATE kept k SET version = w.version, value = w.value
FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bytea[]) AS w (kind, name, version, value)
WHERE k.kind = w.kind AND k.name = w.name
"""
DROP = "DELETE FROM kept WHERE (kind, name) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
DROP_KINDS = "DELETE FROM kept WHERE kind = ANY(%s::text[])"

# -- what is read

BLOBS = "SELECT digest, zstd, content FROM blobs WHERE digest = ANY(%(keys)s)"
BLOBS_DEEP = """
WITH RECURSIVE needed (digest) AS (
    SELECT unnest(%(keys)s::bytea[])
    UNION
    SELECT substring(b.refs FROM 32 * i + 1 FOR 32)
    FROM needed JOIN blobs b USING (digest) CROSS JOIN generate_series(0, length(b.refs) / 32 - 1) AS i
)
SELECT digest, zstd, content FROM needed JOIN blobs USING (digest)
"""
MOVED = """
SELECT r.run_id, r.branch, b.seq FROM runs r JOIN branches b ON b.run_id = r.run_id AND b.branch = r.branch
WHERE r.run_id = ANY(%(runs)s)
"""
