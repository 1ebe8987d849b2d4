-- How many different users: a sketch per name and hour of corrected time, day, and all time. `hours` is how many the cell
-- covers: 1, 24, or 0 for all time, which begins at 0. The sketch is HyperLogLog as in docs/decisions/0007. Events without
-- a user are in none. In the order of time, so that a recent span of all names is read in one piece.
CREATE TABLE rollup_users (
    project    integer  NOT NULL,
    hours      smallint NOT NULL,
    generation bigint   NOT NULL,
    start_ms   bigint   NOT NULL,
    name       text     NOT NULL COLLATE "C",
    sketch     bytea    NOT NULL,
    PRIMARY KEY (project, generation, hours, start_ms, name)
) WITH (fillfactor = 60, toast_tuple_target = 8160);

-- At most 3 KiB that don't compress stay in their row, and the page has room for its next version.
ALTER TABLE rollup_users ALTER COLUMN sketch SET STORAGE EXTERNAL;

-- Whether a generation has had users from its first event on: one that was there before this table has not, until the
-- counts are rebuilt. One that contains nothing yet gets it with its first step, unless a worker of the version before, which
-- counts no users, is faster.
ALTER TABLE view_state ADD COLUMN has_users boolean NOT NULL DEFAULT false;

-- A rebuild would go on with an unfinished generation.
DELETE FROM rollup_counts USING view_live AS live
WHERE live.view = 'counts' AND live.project = rollup_counts.project AND rollup_counts.generation > live.generation;
DELETE FROM view_state USING view_live AS live
WHERE live.view = 'counts' AND view_state.view = 'counts' AND live.project = view_state.project
  AND view_state.generation > live.generation;
