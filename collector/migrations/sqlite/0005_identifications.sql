-- The view "identifications": one row for each id that events carry as their user, or that an alias names. How ids become
-- users is told in docs/PROTOCOL.md. A row that is linked says to whom and nothing else: its figures are with its user.
CREATE TABLE identification (
    project       INTEGER NOT NULL,
    generation    INTEGER NOT NULL,
    user_id       TEXT    NOT NULL,
    -- The user that this id belongs to, and the position of the alias that said so.
    linked_to     TEXT,
    linked_at     INTEGER,
    -- Whether an $identify or an $alias was about this user.
    identified    INTEGER NOT NULL,
    -- How many ids are linked to it.
    links         INTEGER NOT NULL,
    -- Events of the user and of its linked ids, their earliest and latest (corrected) times, and the last position of that.
    events        INTEGER NOT NULL,
    first_ms      INTEGER,
    last_ms       INTEGER,
    last_position INTEGER,
    email         TEXT,
    -- {"name": [time_ms, position, value], …}, with null for a trait that was removed.
    traits        TEXT    NOT NULL,
    -- [{"reason": …, "id": …, "position": …}, …]: what was not taken, the newest last.
    refused       TEXT    NOT NULL,
    PRIMARY KEY (project, generation, user_id)
) STRICT;

-- Serves the list of users, the last seen first. Changes with every user of a step, as the row does.
CREATE INDEX identification_seen ON identification (project, generation, last_ms, last_position) WHERE linked_to IS NULL;

-- Serves looking for an email, and for its beginning. Users without one take no room in it.
CREATE INDEX identification_email ON identification (project, generation, email) WHERE email IS NOT NULL;

-- Serves the ids of a user.
CREATE INDEX identification_link ON identification (project, generation, linked_to) WHERE linked_to IS NOT NULL;

-- A worker that follows the log fills it.
INSERT INTO view_state (view, project, generation, applied_to, has_users) SELECT 'identifications', id, 1, 0, 1 FROM project;
INSERT INTO view_live (view, project, generation) SELECT 'identifications', id, 1 FROM project;
