-- The whole schema of a collector on SQLite. Tables are named after the words in docs/ARCHITECTURE.md, in the singular;
-- `events` is a view for people who look into the file with sqlite3.

-- The log's epoch: renewed when a backup is restored, because positions may have gone back then.
CREATE TABLE epoch (
    only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
    id         BLOB    NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE account (
    id         INTEGER PRIMARY KEY,
    email      TEXT    NOT NULL UNIQUE,
    team       TEXT    NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

-- AUTOINCREMENT: the number of a project that was removed must never lead to another project's rows.
CREATE TABLE project (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    account    INTEGER NOT NULL REFERENCES account (id),
    name       TEXT    NOT NULL,
    created_ms INTEGER NOT NULL,
    UNIQUE (account, name)
) STRICT;

-- Keys are kept as SHA-256 of 256 random bits. Revoked ones stay, so that a stale key can be told from a mistyped one.
CREATE TABLE api_key (
    hash       BLOB    PRIMARY KEY,
    project    INTEGER NOT NULL REFERENCES project (id),
    kind       TEXT    NOT NULL CHECK (kind IN ('write', 'secret')),
    browser    INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    revoked_ms INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX api_key_project ON api_key (project, kind);

-- The log. `key` is project << 40 | position, so that one b-tree without an index of its own holds each project's
-- events together in the order of their positions: 2^40 events a project, 2^23 projects. `project` is repeated because
-- the identity of an event is (project, id). The properties come last: what the other columns answer never reads
-- the pages they overflow to.
CREATE TABLE event (
    key         INTEGER PRIMARY KEY,
    project     INTEGER NOT NULL,
    id          BLOB    NOT NULL,
    id_text     TEXT,
    name        TEXT    NOT NULL,
    time_ms     INTEGER NOT NULL,
    skew_ms     INTEGER,
    received_ms INTEGER NOT NULL,
    user        TEXT,
    stream      TEXT,
    correlation TEXT,
    description TEXT,
    properties  TEXT    NOT NULL,
    UNIQUE (project, id)
) STRICT;

-- Serves events of one name, newest first. The row key stands behind the name in the index and begins with the project,
-- so the project needs no column of its own here. Costs 22 B a row and 0.5 of an insert's 4.5 us.
CREATE INDEX event_name ON event (name);

-- Serves one user's events, newest first. Events without a user take no room in it. The dearest index: 24 B a row and, with
-- users in random order, 2.4 of an insert's 4.5 us, because each lands on a page of its own.
CREATE INDEX event_user ON event (user) WHERE user IS NOT NULL;

-- Serves events of a time without an index over every row: the earliest and the latest (corrected) time in each block of
-- 4,096 positions. Events arrive roughly in the order of their times, so few blocks overlap what is asked for. Costs nothing
-- that could be measured; an index over (project, time) takes 22 B a row and 0.5 us.
CREATE TABLE event_block (
    project INTEGER NOT NULL,
    block   INTEGER NOT NULL,
    from_ms INTEGER NOT NULL,
    to_ms   INTEGER NOT NULL,
    PRIMARY KEY (project, block)
) STRICT, WITHOUT ROWID;

-- Where each project's log ends, and its ledger as running totals. Written after the events, in their transaction.
CREATE TABLE head (
    project     INTEGER PRIMARY KEY REFERENCES project (id),
    position    INTEGER NOT NULL,
    received    INTEGER NOT NULL,
    stored      INTEGER NOT NULL,
    duplicate   INTEGER NOT NULL,
    quarantined INTEGER NOT NULL,
    rejected    INTEGER NOT NULL
) STRICT;

-- One row for every batch that was answered, in the order of the commits, also when nothing in it was new: then
-- last = first - 1. `received` counts the events of the body, so each row is a ledger of its own.
CREATE TABLE ranges (
    id          INTEGER PRIMARY KEY,
    project     INTEGER NOT NULL,
    first       INTEGER NOT NULL,
    last        INTEGER NOT NULL,
    batch       BLOB    NOT NULL,
    received_ms INTEGER NOT NULL,
    received    INTEGER NOT NULL,
    stored      INTEGER NOT NULL,
    duplicate   INTEGER NOT NULL,
    quarantined INTEGER NOT NULL,
    rejected    INTEGER NOT NULL,
    -- A batch too large for one message comes in parts, each with a row.
    part        INTEGER NOT NULL,
    parts       INTEGER NOT NULL,
    -- NULL when everything was stored; otherwise runs in the order of the events, like `stored*400,duplicate*100`.
    verdicts    TEXT,
    -- NULL when nothing was refused on arrival; otherwise places of the body with their codes, like `3:invalid_name`.
    refused     TEXT
) STRICT;

-- Serves the final verdicts of a batch. Costs 30 B and about 1 us a batch.
CREATE INDEX ranges_batch ON ranges (project, batch);

-- How far each generation of a view has come, and which generation is read. `applied_to` is moved in the transaction of
-- what was applied.
CREATE TABLE view_state (
    view       TEXT    NOT NULL,
    project    INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    applied_to INTEGER NOT NULL,
    PRIMARY KEY (view, project, generation)
) STRICT, WITHOUT ROWID;

CREATE TABLE view_live (
    view       TEXT    NOT NULL,
    project    INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (view, project)
) STRICT, WITHOUT ROWID;

-- The view "counts": events per name and hour of their corrected time.
CREATE TABLE rollup_counts (
    project    INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    name       TEXT    NOT NULL,
    hour_ms    INTEGER NOT NULL,
    count      INTEGER NOT NULL,
    PRIMARY KEY (project, generation, name, hour_ms)
) STRICT, WITHOUT ROWID;

-- For people: `SELECT * FROM events WHERE project = 1 ORDER BY position DESC LIMIT 10`.
CREATE VIEW events AS
SELECT project,
       key & 0xFFFFFFFFFF AS position,
       coalesce(id_text, lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4)
                               || '-' || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21))) AS id,
       name,
       description,
       user,
       strftime('%Y-%m-%dT%H:%M:%fZ', time_ms / 1000.0, 'unixepoch') AS time,
       strftime('%Y-%m-%dT%H:%M:%fZ', (time_ms + coalesce(skew_ms, 0)) / 1000.0, 'unixepoch') AS corrected_time,
       strftime('%Y-%m-%dT%H:%M:%fZ', received_ms / 1000.0, 'unixepoch') AS received,
       stream,
       correlation,
       properties
FROM event;
