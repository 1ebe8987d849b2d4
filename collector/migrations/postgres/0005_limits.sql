-- What a project may send, where that is its own: NULL is what the configuration says, 0 is no limit. Events a second, over
-- all edges, and a UTC day.
ALTER TABLE project
    ADD COLUMN events_per_s   bigint CHECK (events_per_s >= 0),
    ADD COLUMN events_per_day bigint CHECK (events_per_day >= 0);
