-- The log and what is computed from it. Accounts may live in another database, so nothing here refers to them.
-- Times are Unix milliseconds; the view `events` shows them as timestamps.

-- The log's epoch: another one means that positions may have gone back. Renewed when the server behind it is another
-- than the one it was written on, and when a head is found behind what was seen before.
CREATE TABLE epoch (
    only_row          boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    id                uuid        NOT NULL,
    system_identifier bigint      NOT NULL,
    timeline          bigint      NOT NULL,
    created_at        timestamptz NOT NULL DEFAULT now()
);

-- Numbers of ranges, taken a thousand at a time by each process.
CREATE SEQUENCE range_id INCREMENT BY 1000;

-- The identity of every event, apart from its content: so that it is known which events are new before any position is
-- given out, and so that it outlives the content by what a late resend may take. No time is part of the key.
-- `range_id` and `place` (among the events of the range's batch) lead to the position. `digest` is what a resend must
-- repeat: CRC-32 of the content in the upper half, of the time in the lower.
CREATE TABLE event_id (
    project  integer NOT NULL,
    place    integer NOT NULL,
    id       uuid    NOT NULL,
    range_id bigint  NOT NULL,
    digest   bigint  NOT NULL,
    PRIMARY KEY (project, id)
);

-- The log. `segment` grows with storing, never with an event's own time, so that dropping old events is dropping a table.
-- Each partition has PRIMARY KEY (project, position) of its own; the head row makes a position unique across them.
CREATE TABLE event (
    project     integer NOT NULL,
    segment     integer NOT NULL,
    position    bigint  NOT NULL,
    time_ms     bigint  NOT NULL,
    received_ms bigint  NOT NULL,
    skew_ms     bigint,
    id          uuid    NOT NULL,
    id_text     text,
    name        text    NOT NULL COLLATE "C",
    user_id     text    COLLATE "C",
    stream      text,
    correlation text,
    description text,
    properties  text    NOT NULL
) PARTITION BY LIST (segment);

-- Serve events of one name and of one user, newest first. Events without a user take no room in theirs.
CREATE INDEX event_name ON event (project, name, position);
CREATE INDEX event_user ON event (project, user_id, position) WHERE user_id IS NOT NULL;

CREATE TABLE segment (
    id        integer     PRIMARY KEY,
    opened_at timestamptz NOT NULL DEFAULT now()
);

-- Where each project's positions in a segment begin.
CREATE TABLE segment_project (
    project integer NOT NULL,
    segment integer NOT NULL,
    first   bigint  NOT NULL,
    PRIMARY KEY (project, segment)
);

-- The earliest and latest (corrected) time in each block of 4,096 positions: serves events of a time without an index over
-- every row, because events arrive roughly in the order of their times.
CREATE TABLE event_block (
    project integer NOT NULL,
    block   bigint  NOT NULL,
    from_ms bigint  NOT NULL,
    to_ms   bigint  NOT NULL,
    PRIMARY KEY (project, block)
) WITH (fillfactor = 70);

-- Where each project's log ends, in which segment, through where it was dropped, and its ledger as running totals.
CREATE TABLE head (
    project     integer PRIMARY KEY,
    segment     integer NOT NULL DEFAULT 0,
    position    bigint  NOT NULL DEFAULT 0,
    dropped     bigint  NOT NULL DEFAULT 0,
    received    bigint  NOT NULL DEFAULT 0,
    stored      bigint  NOT NULL DEFAULT 0,
    duplicate   bigint  NOT NULL DEFAULT 0,
    quarantined bigint  NOT NULL DEFAULT 0,
    rejected    bigint  NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- Through where, and when, each project's events were dropped: identities outlive them by some days.
CREATE TABLE dropped (
    project  integer     NOT NULL,
    position bigint      NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, position)
);

-- One row for every batch, or part of one, that was answered, also when nothing in it was new: then last = first - 1.
CREATE TABLE ranges (
    id          bigint  PRIMARY KEY,
    project     integer NOT NULL,
    part        integer NOT NULL,
    parts       integer NOT NULL,
    first       bigint  NOT NULL,
    last        bigint  NOT NULL,
    batch       uuid    NOT NULL,
    received_ms bigint  NOT NULL,
    received    bigint  NOT NULL,
    stored      bigint  NOT NULL,
    duplicate   bigint  NOT NULL,
    quarantined bigint  NOT NULL,
    rejected    bigint  NOT NULL,
    -- NULL when everything was stored; otherwise runs in order, like `stored*400,duplicate*100`.
    verdicts    text,
    -- NULL when nothing was refused before; otherwise `place:code,…`, places of the body.
    refused     text
);

-- Serve the final verdicts of a batch, and the audit's walk in the order of the positions.
CREATE INDEX ranges_batch ON ranges (project, batch);
CREATE INDEX ranges_first ON ranges (project, first, last);

-- Events that the database refuses, with the reason, in MessagePack as the protocol writes them.
CREATE TABLE quarantine (
    project     integer NOT NULL,
    id          uuid    NOT NULL,
    batch       uuid    NOT NULL,
    received_ms bigint  NOT NULL,
    reason      text    NOT NULL,
    event       bytea   NOT NULL,
    PRIMARY KEY (project, id)
);

-- How far each generation of a view has come, and which generation is read. Generation 0 is what was sealed before old
-- events were dropped: a rebuild begins with it.
CREATE TABLE view_state (
    view       text    NOT NULL,
    project    integer NOT NULL,
    generation bigint  NOT NULL,
    applied_to bigint  NOT NULL,
    PRIMARY KEY (view, project, generation)
) WITH (fillfactor = 50);

CREATE TABLE view_live (
    view       text    NOT NULL,
    project    integer NOT NULL,
    generation bigint  NOT NULL,
    PRIMARY KEY (view, project)
) WITH (fillfactor = 50);

-- The view "counts": events per name and hour of their corrected time.
CREATE TABLE rollup_counts (
    project    integer NOT NULL,
    generation bigint  NOT NULL,
    hour_ms    bigint  NOT NULL,
    count      bigint  NOT NULL,
    name       text    NOT NULL COLLATE "C",
    PRIMARY KEY (project, generation, name, hour_ms)
) WITH (fillfactor = 70);

-- The time by our clock, kept within the years that can be written.
CREATE FUNCTION corrected_ms(time_ms bigint, skew_ms bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN least(greatest(time_ms + coalesce(skew_ms, 0), -62135596800000), 253402207200000);

-- For people: SELECT * FROM events WHERE project = 1 AND properties->>'plan' = 'pro' ORDER BY position DESC LIMIT 10;
CREATE VIEW events AS
SELECT project,
       position,
       coalesce(id_text, id::text) AS id,
       name,
       description,
       user_id AS "user",
       to_timestamp(time_ms / 1000.0) AS time,
       to_timestamp(corrected_ms(time_ms, skew_ms) / 1000.0) AS corrected_time,
       to_timestamp(received_ms / 1000.0) AS received,
       stream,
       correlation,
       properties::jsonb AS properties
FROM event;
