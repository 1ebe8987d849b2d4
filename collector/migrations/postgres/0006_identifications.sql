-- The view "identifications": one row for each id that events carry as their user, or that an alias names. How ids become
-- users is told in docs/PROTOCOL.md. A row that is linked says to whom and nothing else: its figures are with its user.
CREATE TABLE identification (
    project       integer NOT NULL,
    generation    bigint  NOT NULL,
    -- Whether an $identify or an $alias was about this user.
    identified    boolean NOT NULL DEFAULT false,
    -- How many ids are linked to it.
    links         bigint  NOT NULL DEFAULT 0,
    -- Events of the user and of its linked ids, their earliest and latest (corrected) times, and the last position of that.
    events        bigint  NOT NULL,
    first_ms      bigint,
    last_ms       bigint,
    last_position bigint,
    user_id       text    NOT NULL COLLATE "C",
    -- The user that this id belongs to, and the position of the alias that said so.
    linked_to     text    COLLATE "C",
    linked_at     bigint,
    email         text    COLLATE "C",
    -- {"name": [time_ms, position, value], …}, with null for a trait that was removed.
    traits        text    NOT NULL DEFAULT '{}',
    -- [{"reason": …, "id": …, "position": …}, …]: what was not taken, the newest last.
    refused       text    NOT NULL DEFAULT '[]',
    PRIMARY KEY (project, generation, user_id)
) WITH (fillfactor = 70);

-- Serves the list of users, the last seen first. Changes with every user of a step, as the row does.
CREATE INDEX identification_seen ON identification (project, generation, last_ms, last_position) WHERE linked_to IS NULL;

-- Serves looking for an email, and for its beginning. Users without one take no room in it.
CREATE INDEX identification_email ON identification (project, generation, email) WHERE email IS NOT NULL;

-- Serves the ids of a user.
CREATE INDEX identification_link ON identification (project, generation, linked_to) WHERE linked_to IS NOT NULL;

-- A worker that follows the log fills it, from behind what was dropped before there was this view.
INSERT INTO view_state (view, project, generation, applied_to, has_users)
SELECT 'identifications', project, generation, dropped, true FROM head CROSS JOIN (VALUES (0), (1)) AS made (generation)
WHERE generation > 0 OR dropped > 0;
INSERT INTO view_live (view, project, generation) SELECT 'identifications', project, 1 FROM head;
