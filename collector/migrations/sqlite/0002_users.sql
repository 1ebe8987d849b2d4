-- How many different users: a sketch per name and hour of corrected time, day, and all time. `hours` is how many the cell
-- covers: 1, 24, or 0 for all time, which begins at 0. The sketch is HyperLogLog as in docs/decisions/0007. Events without
-- a user are in none. In the order of time, so that a recent span of all names is read in one piece.
CREATE TABLE rollup_users (
    project    INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    hours      INTEGER NOT NULL,
    start_ms   INTEGER NOT NULL,
    name       TEXT    NOT NULL,
    sketch     BLOB    NOT NULL,
    PRIMARY KEY (project, generation, hours, start_ms, name)
) STRICT;

-- Whether a generation has had users from its first event on: one that was there before this table has not, until the
-- counts are rebuilt.
ALTER TABLE view_state ADD COLUMN has_users INTEGER NOT NULL DEFAULT 0;

-- A rebuild would go on with an unfinished generation.
DELETE FROM rollup_counts
WHERE generation > (SELECT live.generation FROM view_live AS live
                    WHERE live.view = 'counts' AND live.project = rollup_counts.project);
DELETE FROM view_state
WHERE view = 'counts'
  AND generation > (SELECT live.generation FROM view_live AS live
                    WHERE live.view = 'counts' AND live.project = view_state.project);

UPDATE view_state SET has_users = 1 WHERE applied_to = 0;
