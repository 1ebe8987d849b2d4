-- What a project may send, where that is its own: NULL is what the configuration says, 0 is no limit. Events a second, and
-- a UTC day.
ALTER TABLE project ADD COLUMN events_per_s INTEGER CHECK (events_per_s >= 0);
ALTER TABLE project ADD COLUMN events_per_day INTEGER CHECK (events_per_day >= 0);
